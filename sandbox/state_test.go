package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The whole table, every state with every event, against a golden file that a
// reader can judge.
func TestStates(t *testing.T) {
	var b strings.Builder
	walk(&b, "pod", podStates,
		[]podState{podCreating, podReady, podNotReady, podRemoving, podGone},
		[]podEvent{podMade, podStop, podLost, podRemove, podRemoved})
	walk(&b, "container", containerStates,
		[]containerState{containerCreating, containerCreated, containerStarting, containerRunning, containerExited, containerRemoving, containerGone},
		[]containerEvent{containerMade, containerStart, containerStarted, containerExit, containerLost, containerRemove, containerRemoved})
	golden(t, filepath.Join("testdata", "states.golden"), b.String())
}

func walk[S, E ~string](b *strings.Builder, what string, tab table[S, E], states []S, events []E) {
	if len(tab) != len(states) {
		panic(fmt.Sprintf("%s: %d states in the table, %d here", what, len(tab), len(states)))
	}
	for _, s := range states {
		for _, e := range events {
			next, illegal := try(tab, s, e)
			if illegal {
				next = "-"
			}
			fmt.Fprintf(b, "%s %-9s %-8s %s\n", what, s, e, next)
		}
	}
}

// try returns the next state; an illegal transition panics in tests.
func try[S, E ~string](tab table[S, E], s S, e E) (next S, illegal bool) {
	defer func() {
		if r := recover(); r != nil {
			err, ok := r.(error)
			if illegal = ok && errors.Is(err, ErrIllegal); !illegal {
				panic(r)
			}
		}
	}()
	next, err := tab.next(s, e)
	return next, err != nil
}

// golden compares got with a file, or writes it with -update.
func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s: got\n%s\nwant\n%s", path, got, want)
	}
}
