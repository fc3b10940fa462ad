package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// containerOutput measures a container that writes lines as fast as they are taken.
func (b *bench) containerOutput(ctx context.Context) error {
	files := max(1, b.output*megabyte/linesSize)
	size := fmt.Sprintf("%d MB of output in lines of %d bytes: ", files*linesSize/megabyte, lineLength)
	seconds := b.table.row(size+"until it is in the log", "s", none)
	cpu := b.table.row(size+"CPU of the runtime", "s", target{ratioAtMost, 0.15})
	lines := b.table.row(size+"lines in the log", "lines", target{ratioAtLeast, 1})

	// It stays, so that those who have read its output can still be asked for their CPU.
	script := fmt.Sprintf(`for i in $(seq %d); do cat /lines; done; %s`, files, rest)
	return b.alternately(ctx, b.rounds, func(side int, s *side) error {
		p, err := s.newPod(b.image, script, runtimeapi.NamespaceMode_POD)
		if err != nil {
			return err
		}
		p.mount(b.lines, "/lines")
		start := up[len(up)-1]
		if err := s.through(ctx, p, times{}, "up", up[:len(up)-1]...); err != nil {
			return err
		}
		begin := time.Now()
		used, err := cpuDuring(func() error {
			if err := s.through(ctx, p, times{}, "up", start); err != nil {
				return err
			}
			return p.awaitLast(ctx, " ready\n")
		}, s.programs...)
		if err != nil {
			return err
		}
		seconds.add(side, time.Since(begin).Seconds())
		cpu.add(side, used.Seconds())
		found, size, err := countLines(p.log())
		if err != nil {
			return err
		}
		if written := files*linesSize + len("ready\n"); size != written {
			return fmt.Errorf("%d of %d bytes are in the log", size, written)
		}
		lines.add(side, float64(found-1)) // without "ready"
		if err := s.through(ctx, p, times{}, "down", down...); err != nil {
			return err
		}
		return os.RemoveAll(p.config.LogDirectory)
	})
}

// awaitLast waits until the log ends with text.
func (p *pod) awaitLast(ctx context.Context, text string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*patience)
	defer cancel()
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	for {
		end, err := lastOf(p.log(), len(text))
		if err != nil {
			return err
		}
		if end == text {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the log ends with %q: %w", end, ctx.Err())
		case <-again.C:
		}
	}
}

// lastOf are the last n bytes of a file, or fewer if it is shorter.
func lastOf(path string, n int) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	text := make([]byte, n)
	got, err := f.ReadAt(text, max(0, info.Size()-int64(n)))
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return string(text[:got]), err
}

// countLines counts the lines that a container has written, and their bytes with
// their ends. A line is in one entry of the log or in several, of which the last is
// marked.
func countLines(path string) (lines, bytesOfLines int, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	for entries := bufio.NewReaderSize(f, 1<<20); ; {
		entry, err := entries.ReadSlice('\n')
		if err == io.EOF {
			return lines, bytesOfLines, nil
		}
		if err != nil {
			return 0, 0, err
		}
		_, rest, _ := bytes.Cut(entry, []byte(" stdout "))
		tag, text, ok := bytes.Cut(rest, []byte(" "))
		switch {
		case !ok:
			return 0, 0, fmt.Errorf("%.100q is no output", entry)
		case string(tag) == "F":
			lines++
			bytesOfLines += len(text)
		default:
			bytesOfLines += len(text) - 1 // its end is the log's
		}
	}
}
