package main

import (
	"context"
	"time"
)

// settling is how long a daemon is left alone before its memory counts.
const settling = 3 * time.Second

// empty measures daemons without pods: their start, with no process of theirs there,
// and their memory.
func (b *bench) empty(ctx context.Context) error {
	answer := b.table.row("empty daemon: start to the first answer", "ms", target{ratioAtMost, 0.5})
	size := b.table.row("empty daemon: memory of all its processes", "MiB", target{ratioAtMost, 0.5})
	return b.alternately(ctx, 3*b.rounds, func(side int, s *side) error {
		if err := s.stop(ctx); err != nil {
			return err
		}
		took, err := s.start(ctx)
		if err != nil {
			return err
		}
		answer.add(side, milliseconds(took))
		if err := pause(ctx, settling); err != nil {
			return err
		}
		bytes, err := memory(s.programs...)
		if err != nil {
			return err
		}
		size.add(side, bytes/mebibyte)
		return nil
	})
}
