package sandbox

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/test/leak"
)

// neitherStartsNorCleansUp is a plan by which a start fails, and what undoes it.
func neitherStartsNorCleansUp(_ int, name string, after bool) fate {
	if !after && (name == "runtime.Start" || name == "runtime.Remove") {
		return failNow
	}
	return proceed
}

// The clean-up after a failed start may fail more than once: the container is
// EXITED when it has gone well.
func TestFailedStartIsCleanedUpInTheEnd(t *testing.T) {
	quiet(t)
	inBubble(t, func(t *testing.T, m *machine) {
		m.must("run", "create")
		m.intend(neitherStartsNorCleansUp)
		if err, _ := m.do("start"); !errors.Is(err, errInjected) {
			t.Errorf("answer: %v", err)
		}
		pass(10 * time.Minute)
		if s := m.container("x").record().State; s != containerStarting {
			t.Errorf("it is %s, and not cleaned up", s)
		}
		m.intend(nil)
		pass(10 * time.Minute)
		if rec := m.container("x").record(); rec.State != containerExited || rec.Reason != reasonStartError {
			t.Errorf("it is %s, %s", rec.State, rec.Reason)
		}
		m.check()
		m.must("remove")
	})
}

// A removal that fails while a clean-up waits for its next try is not forgotten for
// it.
func TestRemovalTakesTheTurnOfACleanUp(t *testing.T) {
	quiet(t)
	inBubble(t, func(t *testing.T, m *machine) {
		m.must("run", "create")
		m.intend(neitherStartsNorCleansUp)
		c := m.container("x")
		for _, verb := range []string{"start", "remove"} {
			if err, _ := m.do(verb); !errors.Is(err, errInjected) {
				t.Errorf("%s: %v", verb, err)
			}
		}
		m.intend(nil)
		pass(10 * time.Minute)
		if s := c.record().State; s != containerGone {
			t.Errorf("it is %s", s)
		}
		m.check()
	})
}

// What was given back may be there again: an earlier daemon's request was still
// under way. A pod whose directory does not go gives it back once more.
func TestPodThatDoesNotGoIsFreedAgain(t *testing.T) {
	quiet(t)
	inBubble(t, func(t *testing.T, m *machine) {
		m.must("run")
		freed := 0
		m.intend(func(n int, name string, after bool) fate {
			if name == "runtime.RemovePod" && !after {
				freed++
			}
			if name == "remove pod" && !after && freed < 3 {
				return failNow
			}
			return proceed
		})
		if err, _ := m.do("remove pod"); !errors.Is(err, errInjected) {
			t.Errorf("answer: %v", err)
		}
		pass(10 * time.Minute)
		if freed != 3 {
			t.Errorf("its namespaces were given back %d times", freed)
		}
		m.check()
	})
}

// A full run directory can be emptied: a removal needs no room for its record.
func TestFullRunDirectoryIsEmptiedByRemovals(t *testing.T) {
	leak.NeedRoot(t)
	for _, verbs := range [][]string{{"run", "remove pod"}, {"run", "create", "remove"}, {"run", "create", "remove pod"}} {
		inBubble(t, func(t *testing.T, m *machine) {
			if err := unix.Mount("tmpfs", m.Dir, "tmpfs", 0, "size=256k"); err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := unix.Unmount(m.Dir, unix.MNT_DETACH); err != nil {
					t.Error(err)
				}
			}()
			last := len(verbs) - 1
			m.must(verbs[:last]...)
			ballast := filepath.Join(m.Dir, "ballast")
			if err := os.WriteFile(ballast, make([]byte, 256<<10), 0o600); !errors.Is(err, syscall.ENOSPC) {
				t.Fatalf("fill the run directory: %v", err)
			}
			m.must(verbs[last])
			if err := os.Remove(ballast); err != nil {
				t.Fatal(err)
			}
			m.check()
			if verbs[last] == "remove" {
				m.must("remove pod")
			}
		})
	}
}
