package sandbox

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// pending is a call under way.
type pending struct{ done chan error }

func start(do func() error) pending {
	p := pending{make(chan error, 1)}
	go func() { p.done <- do() }()
	synctest.Wait()
	return p
}

func (p pending) open() bool { return len(p.done) == 0 }

// hold lets no pod get its network until the returned function is called.
func (m *machine) hold() (let func()) {
	gate := make(chan struct{})
	m.world.mu.Lock()
	m.world.gate = gate
	m.world.mu.Unlock()
	return func() {
		m.world.mu.Lock()
		m.world.gate = nil
		m.world.mu.Unlock()
		close(gate)
		synctest.Wait()
	}
}

func inBubble(t *testing.T, do func(t *testing.T, m *machine)) {
	quiet(t)
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		defer m.end()
		do(t, m)
		m.finish()
	})
}

func TestRunJoins(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		let := m.hold()
		var pods [3]*Pod
		var calls [3]pending
		for i := range pods {
			calls[i] = start(func() (err error) {
				pods[i], err = m.runPod(t.Context(), "a")
				return err
			})
		}
		if !calls[0].open() || !calls[2].open() {
			t.Fatal("a Run returned before the pod had its network")
		}
		if n := len(m.List()) + len(m.WithUID("uid-a")); n > 0 {
			t.Error("a pod in creation is listed")
		}
		id := m.pod("a").ID()
		if _, err := m.Pod(id); !errors.Is(err, ErrNotFound) {
			t.Errorf("a pod in creation is found: %v", err)
		}
		let()
		for i := range calls {
			if err := <-calls[i].done; err != nil || pods[i] != m.pod("a") {
				t.Errorf("call %d: %p, %v, want %p", i, pods[i], err, m.pod("a"))
			}
		}
		again, err := m.runPod(t.Context(), "a")
		if err != nil || again != pods[0] {
			t.Errorf("a later Run: %p, %v", again, err)
		}
		if found, err := m.Pod(id[:10]); err != nil || found != again {
			t.Errorf("by prefix: %v, %v", found, err)
		}
		if len(m.WithUID("uid-a")) != 1 || len(m.WithUID("")) != 0 {
			t.Error("the uid index is wrong")
		}
	})
}

// A client that goes away changes nothing: the pod becomes ready, and the next
// try finds it.
func TestRunIsDetachedFromItsCall(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		let := m.hold()
		ctx, cancel := context.WithCancel(t.Context())
		call := start(func() error { _, err := m.runPod(ctx, "a"); return err })
		cancel()
		if err := <-call.done; !errors.Is(err, context.Canceled) {
			t.Errorf("answer: %v", err)
		}
		first := m.pod("a")
		second := start(func() error { _, err := m.runPod(t.Context(), "a"); return err })
		let()
		if err := <-second.done; err != nil || m.pod("a") != first || len(m.List()) != 1 {
			t.Errorf("the next try: %v", err)
		}
	})
}

func TestStopAndRemovePreemptARun(t *testing.T) {
	for _, verb := range []string{"stop", "remove"} {
		t.Run(verb, func(t *testing.T) {
			inBubble(t, func(t *testing.T, m *machine) {
				let := m.hold()
				defer let()
				first := start(func() error { _, err := m.runPod(t.Context(), "a"); return err })
				joiner := start(func() error { _, err := m.runPod(t.Context(), "a"); return err })
				p, err := m.Find(m.pod("a").ID())
				if err != nil {
					t.Fatal(err)
				}
				end := p.Stop
				if verb == "remove" {
					end = p.Remove
				}
				if err := end(t.Context()); err != nil {
					t.Errorf("%s: %v", verb, err)
				}
				for _, call := range []pending{first, joiner} {
					if err := <-call.done; !errors.Is(err, ErrPreempted) {
						t.Errorf("answer: %v", err)
					}
				}
				m.empty()
			})
		})
	}
}

// While a pod that failed is still being cleaned up, its identity is free.
func TestRunAfterAFailedRun(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		m.intend(func(n int, name string, after bool) fate {
			if name == "network.Add" && after || name == "network.Del" {
				return failNow
			}
			return proceed
		})
		if err, _ := m.do("run"); !errors.Is(err, errInjected) {
			t.Fatalf("answer: %v", err)
		}
		broken := m.pod("a")
		if broken == nil || len(m.List()) > 0 {
			t.Fatal("the failed pod is not being cleaned up unseen")
		}
		m.intend(func(n int, name string, after bool) fate {
			if name == "network.Del" {
				return failNow
			}
			return proceed
		})
		m.must("run")
		if len(m.List()) != 1 || m.List()[0] == broken {
			t.Error("the second try got the broken pod")
		}
		m.intend(nil)
		pass(time.Hour)
		if len(m.pods) != 1 {
			t.Errorf("%d pods are left", len(m.pods))
		}
	})
}

// An identity whose pod is stopped is taken, and the error says what to do.
func TestRunOfAStoppedIdentity(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		m.must("run", "stop pod")
		if err, _ := m.do("run"); !errors.Is(err, ErrIllegal) {
			t.Errorf("run: %v", err)
		}
		m.must("remove pod", "run")
	})
}

func TestContainerCallsJoin(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		m.must("run", "create")
		c := m.container("x")
		m.must("create")
		if len(m.Containers()) != 1 || m.container("x") != c {
			t.Fatal("a second create made another container")
		}
		m.must("start", "start")
		if m.world.starts != 1 {
			t.Errorf("%d processes", m.world.starts)
		}
		if err, _ := m.do("create"); !errors.Is(err, ErrIllegal) {
			t.Errorf("create of a running one: %v", err)
		}
		m.must("stop", "stop")
		if err, _ := m.do("start"); !errors.Is(err, ErrIllegal) {
			t.Errorf("start of an exited one: %v", err)
		}
		m.must("remove")
		for _, gone := range []error{c.Remove(t.Context()), c.Stop(t.Context(), 0)} {
			if gone != nil {
				t.Errorf("of one that is gone: %v", gone)
			}
		}
		if err := c.Start(t.Context()); !errors.Is(err, ErrNotFound) {
			t.Errorf("start of one that is gone: %v", err)
		}
	})
}

// A second stop with less grace shortens the first; a remove ends its patience.
func TestStopGrace(t *testing.T) {
	hours := 3 * time.Hour
	for _, tt := range []struct {
		name  string
		other func(*Container) error
		want  time.Duration
	}{
		{"alone", func(*Container) error { return nil }, hours},
		{"shorter", func(c *Container) error { return c.Stop(context.Background(), time.Minute) }, time.Minute},
		{"longer", func(c *Container) error { return c.Stop(context.Background(), 9*time.Hour) }, hours},
		{"remove", func(c *Container) error { return c.Remove(context.Background()) }, 0},
		{"pod stop", func(c *Container) error { return c.Pod().Stop(context.Background()) }, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, m *machine) {
				m.must("run", "create", "start")
				m.world.deaf = true
				c := m.container("x")
				began := time.Now()
				first := start(func() error { return c.Stop(t.Context(), hours) })
				second := start(func() error { return tt.other(c) })
				if err := <-first.done; err != nil {
					t.Error(err)
				}
				if took := time.Since(began); took != tt.want {
					t.Errorf("took %v, want %v", took, tt.want)
				}
				if err := <-second.done; err != nil {
					t.Error(err)
				}
				if said := m.world.said; len(said) != 1 || said[0] != "quit" {
					t.Errorf("signals: %q, want the image's", said)
				}
			})
		})
	}
}

// A stop of the pod pre-empts what is being made or started in it.
func TestStopPodPreemptsContainers(t *testing.T) {
	for _, at := range []string{"images.Root", "log"} {
		t.Run(at, func(t *testing.T) {
			inBubble(t, func(t *testing.T, m *machine) {
				verb := "create"
				m.must("run")
				if at == "log" {
					m.must("create")
					verb = "start"
				}
				reached, let := make(chan struct{}), make(chan struct{})
				m.intend(func(n int, name string, after bool) fate {
					if name == at && after {
						m.daemon.mu.Unlock() // others go on while this one waits
						close(reached)
						<-let
						m.daemon.mu.Lock()
					}
					return proceed
				})
				made := start(func() error { err, _ := m.do(verb); return err })
				<-reached
				stop := start(func() error { return m.pod("a").Stop(t.Context()) })
				if !stop.open() {
					t.Error("stopped while a container was on its way")
				}
				close(let)
				if err := <-stop.done; err != nil {
					t.Error(err)
				}
				if err := <-made.done; !errors.Is(err, ErrPreempted) {
					t.Errorf("%s: %v", verb, err)
				}
				m.check()
				if err, _ := m.do("create"); verb == "create" && !errors.Is(err, ErrNotReady) {
					t.Errorf("create in a stopped pod: %v", err)
				}
			})
		})
	}
}

// Close leaves everything running, and the next daemon sees it end.
func TestCloseLeavesContainersRunning(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		m.must("run", "create", "start")
		m.Close()
		if m.world.living() != 1 {
			t.Fatal("the container was killed")
		}
		if _, err := m.runPod(t.Context(), "b"); !errors.Is(err, ErrClosed) {
			t.Errorf("run after close: %v", err)
		}
		m.reopen()
		m.world.end(m.container("x").ID(), 3, nil)
		synctest.Wait()
		if seen := m.seen(); seen != "ready/exited Error 3" {
			t.Errorf("seen: %s", seen)
		}
	})
}

// A network that does not let go is told to three callers; then the pod counts
// as stopped, its removal as done, and the background goes on trying.
func TestNetworkThatDoesNotLetGo(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		m.must("run")
		m.intend(func(n int, name string, after bool) fate {
			if name == "network.Del" {
				return failNow
			}
			return proceed
		})
		p := m.pod("a")
		for i := range patientTries {
			if err := p.Stop(t.Context()); !errors.Is(err, errInjected) {
				t.Errorf("stop %d: %v", i, err)
			}
			if pod, _ := m.world.has(p.ID()); !pod {
				t.Error("the namespaces are gone while the network needs them")
			}
			pass(time.Hour) // the background's tries do not count
		}
		if err := p.Stop(t.Context()); err != nil {
			t.Errorf("the last stop: %v", err)
		}
		if pod, _ := m.world.has(p.ID()); pod {
			t.Error("the last stop left the namespaces")
		}
		if err := p.Remove(t.Context()); err != nil || len(m.List()) != 0 {
			t.Errorf("remove: %v", err)
		}
		pass(time.Hour)
		m.crash()
		m.reopenWith(m.plan)
		pass(time.Hour)
		if _, address := m.world.has(p.ID()); len(m.List()) != 0 || len(m.pods) != 1 || !address {
			t.Error("the pod that is still attached was forgotten, or is seen again")
		}
		m.intend(nil)
		pass(time.Hour)
		m.empty()
	})
}
