package sandbox

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The resources of a container follow its updates, from its creation on and
// whatever becomes of the daemon.
func TestUpdate(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		m.must("run", "create")
		update := func(want *res) error { return m.container("x").Update(t.Context(), want) }
		shows := func(memory, shares int64) {
			t.Helper()
			r := m.container("x").Status().GetResources().GetLinux()
			if r.GetMemoryLimitInBytes() != memory<<20 || r.GetCpuShares() != shares {
				t.Errorf("shows %v, want %d MiB and %d shares", r, memory, shares)
			}
		}
		shows(100, 100)
		if err := update(&res{CpuShares: 150}); err != nil {
			t.Error(err)
		}
		shows(100, 150)
		if n := len(m.world.updates); n != 0 {
			t.Errorf("%d updates of a container that has no cgroup yet", n)
		}
		m.crash()
		m.reopen()
		shows(100, 150)
		m.must("start")
		m.check() // the kernel has what the record says
		if err := update(&res{MemoryLimitInBytes: 120 << 20}); err != nil {
			t.Error(err)
		}
		shows(120, 150)
		if n := len(m.world.updates); n != 1 || m.world.updates[0].Resources.CPU != nil {
			t.Errorf("updates %v, want one, of memory alone", m.world.updates)
		}
		refused(t, update(&res{MemorySwapLimitInBytes: 110 << 20}), "linux.resources.memory_swap_limit_in_bytes")
		if err := update(nil); err != nil {
			t.Errorf("nothing: %v", err)
		}
		shows(120, 150)
		m.check()
		m.crash()
		m.reopen()
		shows(120, 150)
		m.world.end(m.container("x").ID(), 0, nil)
		synctest.Wait()
		if err := update(&res{CpuShares: 9}); !errors.Is(err, ErrIllegal) || !strings.Contains(err.Error(), "exited") {
			t.Errorf("of an exited one: %v", err)
		}
		shows(120, 150)
		m.must("remove")
	})
}

// Of two limits the kernel takes one: it gets it back.
func TestUpdateIsAllOrNothing(t *testing.T) {
	quiet(t)
	inBubble(t, func(t *testing.T, m *machine) {
		m.must("run", "create", "start")
		m.world.scarce = true
		err := m.container("x").Update(t.Context(), &res{MemoryLimitInBytes: 300 << 20, CpuShares: 300})
		if !errors.Is(err, errInjected) {
			t.Errorf("answer: %v", err)
		}
		if p := m.world.procs[m.container("x").ID()]; p.may["memory"] != "104857600" {
			t.Errorf("half of it is done: %v", p.may)
		}
		m.check()
		m.must("remove")
	})
}

// The putting back may fail as well: it is tried again until it has gone well.
func TestUpdateThatCannotBePutBack(t *testing.T) {
	quiet(t)
	inBubble(t, func(t *testing.T, m *machine) {
		m.must("run", "create", "start")
		m.intend(func(n int, name string, after bool) fate {
			if name == "runtime.Restore" && !after || name == "runtime.Update" && after {
				return failNow
			}
			return proceed
		})
		if err, _ := m.do("update"); !errors.Is(err, errInjected) {
			t.Errorf("answer: %v", err)
		}
		if m.container("x").record().Undo == nil {
			t.Error("what is to be put back is forgotten")
		}
		pass(10 * time.Minute) // several tries fail
		m.intend(nil)
		pass(10 * time.Minute)
		m.check()
		m.must("remove")
	})
}

// Updates that differ do not join: each has its effect.
func TestUpdatesQueue(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		m.must("run", "create", "start")
		var calls sync.WaitGroup
		for _, want := range []*runtimeapi.LinuxContainerResources{{MemoryLimitInBytes: 50 << 20}, {CpuShares: 50}} {
			calls.Go(func() {
				if err := m.container("x").Update(context.Background(), want); err != nil {
					t.Error(err)
				}
			})
		}
		calls.Wait()
		if r := m.container("x").Status().GetResources().GetLinux(); r.GetMemoryLimitInBytes() != 50<<20 || r.GetCpuShares() != 50 {
			t.Errorf("shows %v", r)
		}
		m.check()
		m.must("remove")
	})
}

// Keys whose files do not read as they are written could end half done.
func TestUpdateOfWhatCannotBePutBack(t *testing.T) {
	for key, field := range map[string]string{"io.max": `linux.resources.unified["io.max"]`, "rdma.max": `linux.resources.unified["rdma.max"]`, "memory.high": ""} {
		refused(t, checkPutBack(map[string]string{key: "1"}), field)
	}
}
