package main

import "testing"

// What a burst took goes back to the system, and an idle daemon does not collect.
func TestMemoryGoesBack(t *testing.T) {
	var m memory
	m.round()
	before := m.kept
	flood := make([][]byte, 200)
	for i := range flood {
		flood[i] = make([]byte, 1<<20)
	}
	if grown := held() - before; grown < 150<<20 {
		t.Fatalf("the burst took %d MiB only", grown>>20)
	}
	clear(flood)
	m.round()
	if m.kept > before+20<<20 { // Go keeps some of it free, a tenth at most
		t.Errorf("%d MiB stay of a burst", (m.kept-before)>>20)
	}
}

// A burst has to stay below the limit, and many pods have room above it.
func TestMemoryLimit(t *testing.T) {
	for kept, want := range map[uint64]int64{0: memoryLimit, 20 << 20: memoryLimit, 200 << 20: 250 << 20} {
		if got := (&memory{kept: kept}).limit(); got != want {
			t.Errorf("with %d MiB in use the limit is %d MiB, want %d", kept>>20, got>>20, want>>20)
		}
	}
}
