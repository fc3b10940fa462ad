package oci

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"berth/oci/cgroup"
)

// Frozen containers. On cgroup v1 a frozen process does not even die.

// freeze freezes the cgroup at path until the test's end, or until thaw is called.
func freeze(t *testing.T, path string) (thaw func()) {
	t.Helper()
	file, frozen, thawed := freezer+path+"/freezer.state", "FROZEN", "THAWED"
	if _, err := os.Stat(freezer); err != nil {
		file, frozen, thawed = cgroup.Unified()+path+"/cgroup.freeze", "1", "0"
	}
	thaw = func() { _ = os.WriteFile(file, []byte(thawed), 0) }
	t.Cleanup(thaw)
	if err := os.WriteFile(file, []byte(frozen), 0); err != nil {
		t.Fatal(err)
	}
	await(t, "it is frozen", func() bool { return isFrozen(path) })
	return thaw
}

const freezer = "/sys/fs/cgroup/freezer"

func isFrozen(path string) bool {
	state, _ := os.ReadFile(freezer + path + "/freezer.state")
	events, _ := os.ReadFile(cgroup.Unified() + path + "/cgroup.events")
	return string(state) == "FROZEN\n" || strings.Contains(string(events), "frozen 1")
}

// inPod makes a container in a pod's cgroup of its own.
func (n *node) inPod(r *Runtime, pod string) *container {
	c := n.container(r, "sleep 1000 & exec sleep 1000")
	c.Cgroup = CgroupRoot + "/" + pod + "/" + c.ID
	c.spec.Linux.CgroupsPath = c.Cgroup
	return c
}

// A container ends whatever of it is frozen, and nothing beside it is thawed.
func TestKillOfAFrozenContainer(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		for _, frozen := range []string{"its own", "one below", "the pod's"} {
			c, other := n.inPod(r, "pod"), n.inPod(r, "pod")
			first, spared := c.start(), other.start()
			path := c.Cgroup
			switch frozen {
			case "one below":
				path = c.Cgroup + "/below"
				enterFreezer(t, path, slices.DeleteFunc(c.procs(), func(pid int) bool { return pid == first }))
			case "the pod's":
				path = filepath.Dir(c.Cgroup)
			}
			thaw := freeze(t, path)
			ctx, cancel := context.WithTimeout(n.ctx, 10*time.Second)
			if err := r.Kill(ctx, c.Container); err != nil {
				t.Errorf("%s: %v", frozen, err)
			}
			cancel()
			if pids := c.procs(); len(pids) > 0 {
				t.Errorf("%s: processes %v live on", frozen, pids)
			}
			c.wait()
			if p := lookAt(spared); p.pid == 0 || p.state == "Z" {
				t.Errorf("%s: another container's process is %v", frozen, p)
			}
			if !isFrozen(path) && frozen == "the pod's" {
				t.Error("the pod was thawed")
			}
			thaw()
			other.remove()
			c.remove()
		}
	})
}

// enterFreezer moves processes to a new cgroup where they can be frozen.
func enterFreezer(t *testing.T, path string, pids []int) {
	t.Helper()
	dir, err := cgroup.Nest(filepath.Dir(path), filepath.Base(path))
	if err != nil {
		t.Fatal(err)
	}
	if dir == "" {
		dir = cgroup.Unified() + path
	}
	for _, pid := range pids {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0); err != nil {
			t.Fatal(err)
		}
	}
}

// An exec into a frozen container ends with its caller's patience, and the
// container stays frozen and whole. So does one that was frozen while it ran.
func TestExecInAFrozenContainer(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		c := n.inPod(r, "pod")
		first := c.start()
		for _, path := range []string{c.Cgroup, filepath.Dir(c.Cgroup)} {
			thaw := freeze(t, path)
			c.execFrozen(true, "true", nil)
			thaw()
			for _, whole := range []bool{true, false} {
				c.execFrozen(whole, "echo ready; sleep 100", func() { thaw = freeze(t, path) })
				thaw()
			}
			await(t, "nothing is left of it", func() bool { return len(c.procs()) == 2 })
		}
		if err := syscall.Kill(first, 0); err != nil {
			t.Errorf("the container has ended: %v", err)
		}
		if code, _, errs, err := c.exec("true"); code != 0 || err != nil {
			t.Errorf("exec: %d, %q, %v", code, errs, err)
		}
	})
}

// execFrozen expects an exec to end when its time is over: when ready has returned,
// or soon for one that cannot become ready.
func (c *container) execFrozen(whole bool, script string, ready func()) {
	c.t.Helper()
	ctx, cancel := context.WithCancel(c.ctx)
	defer cancel()
	var since time.Time
	begin := func() { since = time.Now(); cancel() }
	said := writerFunc(func([]byte) { ready(); begin() })
	if ready == nil {
		timer := time.AfterFunc(500*time.Millisecond, begin)
		defer timer.Stop()
	}
	_, err := c.Runtime.Exec(ctx, Exec{Container: c.Container, Process: c.process(script, false), Stdout: said, Whole: whole})
	if ready == nil && err != nil && strings.Contains(err.Error(), "is paused") { // crun looks first
		return
	}
	took := time.Since(since)
	if !errors.Is(err, context.Canceled) || took > 3*time.Second {
		c.t.Errorf("whole %v, %q: %v after its time was over: %v", whole, script, took, err)
	}
}
