package sandbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"berth/test/expect"
)

// quiet drops the log of tests in which everything goes wrong by plan.
func quiet(t *testing.T) {
	klog.SetLogger(klog.Logger{})
	t.Cleanup(klog.ClearLogger)
}

// An operation under test: what has to be there before, the call, and what may
// be seen after it failed, or after a crash in it and a recovery. What is seen
// is "pod state/container state", "-" for none.
var operations = []struct {
	name   string
	before []string
	failed []string
	after  []string
}{
	{"run", nil, []string{"-/-"}, []string{"-/-", "ready/-"}},
	{"create", []string{"run"}, []string{"ready/-"}, []string{"ready/-", "ready/created"}},
	{"start", []string{"run", "create"}, []string{"ready/created", "ready/exited StartError 128"}, []string{"ready/created", "ready/running"}},
	{"update", []string{"run", "create", "start"}, []string{"ready/running"}, []string{"ready/running"}},
	{"update created", []string{"run", "create"}, []string{"ready/created"}, []string{"ready/created"}},
	{"stop", []string{"run", "create", "start"}, []string{"ready/running", "ready/exited Error 131", "ready/exited Error 137"}, []string{"ready/running", "ready/exited Error 131", "ready/exited Error 137"}},
	{"remove", []string{"run", "create", "start"}, []string{"ready/-", "ready/running"}, []string{"ready/-", "ready/running", "ready/exited Error 137"}},
	{"stop pod", []string{"run", "create", "start"}, []string{"notready/exited Error 137"}, []string{"ready/running", "notready/exited Error 137"}},
	{"remove pod", []string{"run", "create", "start"}, []string{"-/-"}, []string{"ready/running", "-/-"}},
	{"remove stopped pod", []string{"run", "create", "start", "stop pod"}, []string{"-/-"}, []string{"notready/exited Error 137", "-/-"}},
}

// do performs the operation with this name.
func (m *machine) do(name string) (err error, answered bool) {
	return m.call(func(ctx context.Context) error {
		switch name {
		case "run":
			_, err := m.runPod(ctx, "a")
			return err
		case "create":
			config := containerConfig("x")
			config.Image.Image = "volumes"
			config.Mounts = []*runtimeapi.Mount{{ContainerPath: "/data", Readonly: true, Image: &runtimeapi.ImageSpec{Image: "data"}, ImageSubPath: "etc"}}
			_, err := m.pod("a").CreateContainer(ctx, config)
			return err
		case "start":
			return m.container("x").Start(ctx)
		case "update", "update created":
			return m.container("x").Update(ctx, &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 200 << 20, CpuShares: 200})
		case "stop":
			return m.container("x").Stop(ctx, 10*time.Second)
		case "remove":
			return m.container("x").Remove(ctx)
		case "stop pod":
			return m.pod("a").Stop(ctx)
		case "remove pod", "remove stopped pod":
			return m.pod("a").Remove(ctx)
		}
		return fmt.Errorf("no operation %q", name)
	})
}

func (m *machine) must(names ...string) {
	m.t.Helper()
	for _, name := range names {
		if err, answered := m.do(name); err != nil || !answered {
			m.t.Fatalf("%s: %v, answered: %v", name, err, answered)
		}
	}
	synctest.Wait()
}

// seen is what a client sees of pod a and its container x.
func (m *machine) seen() string {
	pod, container := "-", "-"
	for _, p := range m.List() {
		pod = string(p.record().State)
	}
	for _, c := range m.Containers() {
		rec := c.record()
		if container = string(rec.State); !rec.FinishedAt.IsZero() {
			container = fmt.Sprintf("%s %s %d", rec.State, rec.Reason, rec.ExitCode)
		}
	}
	return pod + "/" + container
}

// effectsOf lists the effects of an operation that goes well. What the
// background does on its own is not among them.
func effectsOf(t *testing.T, name string, before []string) (effects []string) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		defer m.end()
		m.must(before...)
		pass(time.Minute) // the mirror rests
		m.intend(nil)
		m.must(name)
		effects = m.done()
		if len(effects) == 0 {
			t.Fatalf("%s has no effects", name)
		}
	})
	return effects
}

// After a failure of any step, before or after it had its effect, the operation
// says so, and then everything is as it was or gone: nothing is held that no
// record knows, and the background finishes what has to be finished.
func TestFailureAtEveryStep(t *testing.T) {
	quiet(t)
	for _, op := range operations {
		for i, effect := range effectsOf(t, op.name, op.before) {
			for _, after := range []bool{false, true} {
				if after && strings.HasPrefix(effect, "record ") {
					continue // a record that was renamed into its place was written
				}
				name := fmt.Sprintf("%s/%d %s/after %v", op.name, i, effect, after)
				t.Run(name, func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						m := newMachine(t)
						defer m.end()
						m.must(op.before...)
						pass(time.Minute)
						m.intend(func(n int, _ string, a bool) fate {
							if n == i && a == after {
								return failNow
							}
							return proceed
						})
						err, answered := m.do(op.name)
						if !answered {
							t.Fatal("no answer")
						}
						// A stop signal that cannot be sent is followed by a kill, and
						// an exit that cannot be recorded is recorded later.
						if effect != "runtime.Signal" && effect != "record container exit" && !errors.Is(err, errInjected) {
							t.Errorf("answer: %v", err)
						}
						pass(time.Hour)
						m.check()
						if seen := m.seen(); !slices.Contains(op.failed, seen) {
							t.Errorf("seen: %s, want one of %q", seen, op.failed)
						}
						m.finish()
					})
				})
			}
		}
	}
}

// Each operation that fails is in the log once, with what it was done to, the step and
// the reason, and nothing else is.
func TestEachFailureIsLoggedOnce(t *testing.T) {
	for _, op := range operations {
		for i, effect := range effectsOf(t, op.name, op.before) {
			if effect == "runtime.Signal" || effect == "record container exit" {
				continue // the operation goes on without
			}
			t.Run(fmt.Sprintf("%s/%d %s", op.name, i, effect), func(t *testing.T) {
				logged := expect.Log(t)
				synctest.Test(t, func(t *testing.T) {
					m := newMachine(t)
					defer m.end()
					m.must(op.before...)
					pass(time.Minute)
					logged.Reset()
					m.intend(func(n int, _ string, after bool) fate {
						if n == i && !after {
							return failNow
						}
						return proceed
					})
					m.do(op.name)
					klog.Flush()
					lines := strings.Split(strings.TrimSpace(logged.String()), "\n")
					if len(lines) != 1 {
						t.Fatalf("%d lines:\n%s", len(lines), logged)
					}
					for _, want := range []string{`"Operation failed"`, errInjected.Error(), `namespace="default" name="a"`, `step="` + effect + `"`} {
						if !strings.Contains(lines[0], want) {
							t.Errorf("the log lacks %s: %s", want, lines[0])
						}
					}
				})
			})
		}
	}
}

// After a crash at any step, and the next daemon's Open, the operation has
// happened or has not.
func TestCrashAtEveryStep(t *testing.T) {
	quiet(t)
	for _, op := range operations {
		for i, effect := range effectsOf(t, op.name, op.before) {
			for _, after := range []bool{false, true} {
				name := fmt.Sprintf("%s/%d %s/after %v", op.name, i, effect, after)
				t.Run(name, func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						m := newMachine(t)
						defer m.end()
						m.must(op.before...)
						pass(time.Minute)
						started := m.world.starts
						m.intend(func(n int, _ string, a bool) fate {
							if n == i && a == after {
								return crashNow
							}
							return proceed
						})
						if err, answered := m.do(op.name); answered && op.name != "stop" {
							t.Fatalf("answered: %v", err)
						}
						m.reopen()
						pass(time.Hour)
						m.check()
						if seen := m.seen(); !slices.Contains(op.after, seen) {
							t.Errorf("seen: %s, want one of %q", seen, op.after)
						}
						if n := m.world.starts - started; n > 1 {
							t.Errorf("%d processes were started", n)
						}
						m.finish()
					})
				})
			}
		}
	}
}

// A crash at any step of the recovery from a crash at any step is no worse.
func TestCrashInRecovery(t *testing.T) {
	quiet(t)
	for _, op := range operations {
		effects := effectsOf(t, op.name, op.before)
		for i, effect := range effects {
			for again := range len(effects) {
				synctest.Test(t, func(t *testing.T) {
					m := newMachine(t)
					defer m.end()
					m.must(op.before...)
					pass(time.Minute)
					m.intend(crashAfter(i))
					m.do(op.name)
					m.reopenWith(crashAfter(again))
					pass(time.Minute)
					m.crash()
					m.reopen()
					pass(time.Hour)
					m.check()
					if seen := m.seen(); !slices.Contains(op.after, seen) {
						t.Errorf("%s, crash after %s, then after %d more: seen %s, want one of %q", op.name, effect, again, seen, op.after)
					}
					m.finish()
				})
			}
		}
	}
}

func crashAfter(i int) func(int, string, bool) fate {
	return func(n int, _ string, after bool) fate {
		if n == i && after {
			return crashNow
		}
		return proceed
	}
}

// finish removes what there is and checks that nothing is left.
func (m *machine) finish() {
	m.t.Helper()
	m.intend(nil)
	for _, p := range m.List() {
		if err, answered := m.call(p.Remove); err != nil || !answered {
			m.t.Errorf("remove: %v, answered: %v", err, answered)
		}
	}
	m.empty()
}
