package oci

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"berth/oci/cgroup"
	"berth/oci/keeper"
)

// withoutAny kills the keeper and the runner while there is no berthd, does what
// happens meanwhile, and comes back.
func (n *node) withoutAny(r *Runtime, meanwhile func()) {
	n.t.Helper()
	h := n.hello()
	n.keeper.Close()
	pause(n.t, h.Pid) // or it starts another runner
	end(h.Runner)
	kill(n.t, h.Pid)
	awaitEnd(n.t, h.Runner)
	meanwhile()
	n.keeper = n.openClient(self(n.t))
	r.Keeper = n.keeper
}

// A first process may have moved to a cgroup below its own, as systemd does. It
// runs, and its stdin can be ended.
func TestAdoptAProcessThatMovedBelow(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		c := n.container(r, "cat; exit 6")
		c.stdin = true
		pid := c.start()
		// With its last writer, stdin would end at once.
		writer, err := os.OpenFile(filepath.Join(c.Dir, keeper.StdinFIFO), os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		n.withoutAny(r, func() {
			if err := cgroup.Make(c.Cgroup+"/inner", pid); err != nil {
				t.Fatal(err)
			}
		})
		if err := r.CloseStdin(n.ctx, c.Container); err != nil {
			t.Error(err)
		}
		writer.Close()
		if code := c.wait(); code != 6 {
			t.Errorf("exit code %d, want 6", code)
		}
		if err := r.CloseStdin(n.ctx, c.Container); !errors.Is(err, ErrNotRunning) {
			t.Errorf("close stdin of one that has ended: %v", err)
		}
		c.remove()
		n.check()
	})
}

// A container that ended while nobody was there is not over before what it has
// left is: with a pid namespace that is not its own, that is not the kernel's
// business.
func TestEndWithoutAnybodyKillsWhatIsLeft(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		c := n.container(r, "sleep 1000")
		pid := c.start()
		left := exec.Command("sleep", "1000")
		if err := left.Start(); err != nil {
			t.Fatal(err)
		}
		defer left.Process.Kill()
		if err := cgroup.Make(c.Cgroup, left.Process.Pid); err != nil {
			t.Fatal(err)
		}
		n.withoutAny(r, func() { kill(t, pid) })
		if _, err := r.Wait(n.ctx, c.Container); !errors.Is(err, ErrExitUnknown) {
			t.Errorf("wait: %v", err)
		}
		left.Wait() // its error is the signal
		if pids := c.procs(); len(pids) > 0 {
			t.Errorf("processes %v are left", pids)
		}
		c.remove()
		n.check()
	})
}
