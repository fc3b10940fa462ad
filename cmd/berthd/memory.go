package main

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"time"
)

const (
	// memoryPause is how long memory that a burst of work took may stay.
	memoryPause = 20 * time.Second
	// memoryStep is how much an idle daemon may grow before it is worth a collection.
	memoryStep = 8 << 20
)

// returnMemory gives what a burst of work took back to the system, until ctx ends or the
// function that it returns is called, which waits. The Go runtime itself takes minutes.
func returnMemory(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	running.Go(func() {
		rounds := time.NewTicker(memoryPause)
		defer rounds.Stop()
		var m memory
		for {
			select {
			case <-rounds.C:
				m.round()
			case <-ctx.Done():
				return
			}
		}
	})
	return func() {
		cancel()
		running.Wait()
	}
}

// memory is how much the daemon had after the last round that gave something back.
type memory struct{ kept uint64 }

// round collects only if the daemon has grown since: a collection that frees nothing
// is not repeated.
func (m *memory) round() {
	now := held()
	if now > m.kept+memoryStep {
		debug.FreeOSMemory()
		m.kept = held()
	}
	m.kept = min(m.kept, now)
}

// held is the memory that the Go runtime has from the system.
func held() uint64 {
	sample := []metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64() - sample[1].Value.Uint64()
}
