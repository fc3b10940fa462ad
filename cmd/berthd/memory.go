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
	// memoryLimit is what the daemon tries to stay below: with it, a pull of anything
	// takes less than 64 MiB.
	memoryLimit = 48 << 20
)

// returnMemory bounds the memory that a burst of work takes and gives it back to the
// system afterwards, until ctx ends or the function that it returns is called, which
// waits. The Go runtime itself lets garbage grow to as much as is in use, and takes
// minutes to give it back.
func returnMemory(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	running.Go(func() {
		rounds := time.NewTicker(memoryPause)
		defer rounds.Stop()
		var m memory
		for {
			m.round()
			debug.SetMemoryLimit(m.limit())
			select {
			case <-rounds.C:
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

// limit leaves a daemon with many pods room for garbage: it must not collect all the
// time.
func (m *memory) limit() int64 { return int64(max(memoryLimit, m.kept+m.kept/4)) }

// held is the memory that the Go runtime has from the system.
func held() uint64 {
	sample := []metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64() - sample[1].Value.Uint64()
}
