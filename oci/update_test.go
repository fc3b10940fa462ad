package oci

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"berth/oci/cgroup"
	"berth/test/leak"

	"github.com/opencontainers/cgroups"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func ptr[T any](v T) *T { return &v }

// limit reads one of the container's limits; the names are those of v1 and v2.
func (c *container) limit(controller, v1, v2 string) string {
	c.t.Helper()
	path := filepath.Join(cgroup.Unified(), c.Cgroup, v2)
	if !cgroups.IsCgroup2UnifiedMode() {
		at, err := cgroups.FindCgroupMountpoint("", controller)
		if err != nil {
			c.t.Fatal(err)
		}
		path = filepath.Join(at, c.Cgroup, v1)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		c.t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

func (c *container) memory() string {
	c.t.Helper()
	return c.limit("memory", "memory.limit_in_bytes", "memory.max") + " " + c.limit("memory", "memory.memsw.limit_in_bytes", "memory.swap.max")
}

// update does what its user does: all or nothing.
func (c *container) update(u Update) error {
	c.t.Helper()
	was, err := c.Runtime.Limits(c.ctx, c.Container, u)
	if err != nil {
		return err
	}
	if err := c.Runtime.Update(c.ctx, c.Container, u); err != nil {
		if e := c.Runtime.Restore(c.ctx, c.Container, was); e != nil {
			c.t.Errorf("put back: %v", e)
		}
		return err
	}
	return nil
}

func memoryOf(limit, swap int64) *specs.LinuxResources {
	return &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit, Swap: &swap}}
}

// Memory and swap are taken in the one order that the kernel allows, up and down.
func TestUpdateMemoryUpAndDown(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		c := n.container(r, "sleep 1000")
		c.spec.Linux.Resources = memoryOf(64<<20, 64<<20)
		c.start()
		for _, step := range []struct{ limit, swap int64 }{
			{128 << 20, 128 << 20}, {32 << 20, 32 << 20}, {32 << 20, 256 << 20}, {200 << 20, 200 << 20}, {16 << 20, -1}, {64 << 20, 64 << 20}, {64 << 20, 64 << 20},
		} {
			if err := c.update(Update{Resources: memoryOf(step.limit, step.swap)}); err != nil {
				t.Fatalf("to %v: %v", step, err)
			}
			if got := c.memory(); !strings.HasPrefix(got, fmt.Sprint(step.limit, " ")) {
				t.Errorf("to %v: the kernel has %s", step, got)
			}
		}
	})
}

// Guards against a kill where the kernel or we should refuse.
func TestUpdateBelowWhatIsInUse(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		c := n.container(r, `head -c 24000000 /dev/zero >/tmp/x; echo ready; sleep 1000`)
		c.spec.Linux.Resources = memoryOf(256<<20, 256<<20)
		c.start()
		c.awaitOutput("ready")
		before, shares := c.memory(), c.limit("cpu", "cpu.shares", "cpu.weight")
		u := Update{Resources: memoryOf(8<<20, 8<<20), OOMScoreAdj: ptr(700)}
		u.Resources.CPU = &specs.LinuxCPU{Shares: ptr(uint64(300))}
		if err := c.update(u); err == nil || !strings.Contains(err.Error(), "usage") {
			t.Errorf("answer: %v, want one that names the usage", err)
		}
		if got := c.memory(); got != before {
			t.Errorf("memory %s, before it was %s", got, before)
		}
		if got := c.limit("cpu", "cpu.shares", "cpu.weight"); got != shares {
			t.Errorf("shares %s, before they were %s", got, shares)
		}
		if pids := c.procs(); len(pids) == 0 {
			t.Error("the container was killed")
		}
	})
}

// Guards against a kill by cgroup v2 where an update is put back, and the
// container has taken what it was given meanwhile.
func TestRestoreBelowWhatIsInUse(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		c := n.container(r, `read x; head -c 40000000 /dev/zero >/tmp/x; echo ready; read x; rm /tmp/x; echo gone; sleep 1000`)
		c.stdin = true
		c.spec.Linux.Resources = memoryOf(32<<20, 32<<20)
		c.start()
		u := Update{Resources: memoryOf(128<<20, 128<<20)}
		before, err := r.Limits(c.ctx, c.Container, u)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Update(c.ctx, c.Container, u); err != nil {
			t.Fatal(err)
		}
		c.write("grow\n")
		c.awaitOutput("ready")
		if err := r.Restore(c.ctx, c.Container, before); err == nil {
			t.Error("put back below what is in use")
		}
		c.write("shrink\n")
		c.awaitOutput("gone")
		if err := r.Restore(c.ctx, c.Container, before); err != nil {
			t.Errorf("in vain: %v", err)
		}
		if after, err := r.Limits(c.ctx, c.Container, u); err != nil || !maps.Equal(before.Files, after.Files) {
			t.Errorf("%v, %v, want %v", after.Files, err, before.Files)
		}
	})
}

// A limit that the kernel refuses takes back those that it took before: here the
// pod's cpuset has only the first CPU, and cpusets come first for the driver but
// not in every other.
func TestUpdateIsAllOrNothing(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		c := n.container(r, "sleep 1000")
		c.spec.Linux.Resources = memoryOf(64<<20, 64<<20)
		c.start()
		refusedBy := map[string]*specs.LinuxResources{
			"cpuset":  {CPU: &specs.LinuxCPU{Cpus: "8000"}},
			"period":  {CPU: &specs.LinuxCPU{Shares: ptr(uint64(400)), Quota: ptr(int64(5000)), Period: ptr(uint64(10000000))}},
			"quota":   {CPU: &specs.LinuxCPU{Shares: ptr(uint64(400)), Quota: ptr(int64(10)), Period: ptr(uint64(1000000))}},
			"hugetlb": {CPU: &specs.LinuxCPU{Shares: ptr(uint64(400))}, HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "3MB", Limit: 1}}},
		}
		for name, res := range refusedBy {
			res.Memory = memoryOf(128<<20, 128<<20).Memory
			u := Update{Resources: res, OOMScoreAdj: ptr(600)}
			before, err := r.Limits(c.ctx, c.Container, u)
			if err != nil {
				t.Fatal(err)
			}
			if err := c.update(u); err == nil {
				t.Errorf("%s: taken", name)
			}
			after, err := r.Limits(c.ctx, c.Container, u)
			if err != nil || !maps.Equal(before.Files, after.Files) || !maps.Equal(before.OOMScoreAdj, after.OOMScoreAdj) {
				t.Errorf("%s: now %v, %v, before %v", name, after, err, before)
			}
			if len(before.Files) < 6 { // those of v2; v1 has one more
				t.Errorf("%s: only %v were read", name, slices.Sorted(maps.Keys(before.Files)))
			}
		}
	})
}

// What only one of its two passes can put back, because the kernel wants the
// other first, is put back.
func TestRestoreInAnyOrder(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		c := n.container(r, "sleep 1000")
		c.spec.Linux.Resources = memoryOf(64<<20, 64<<20)
		c.start()
		for _, other := range []*specs.LinuxResources{memoryOf(128<<20, 256<<20), memoryOf(16<<20, 16<<20)} {
			u := Update{Resources: other}
			before, err := r.Limits(c.ctx, c.Container, u)
			if err != nil {
				t.Fatal(err)
			}
			if err := r.Update(c.ctx, c.Container, u); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if err := r.Restore(c.ctx, c.Container, before); err != nil {
					t.Error(err)
				}
			}
			if after, err := r.Limits(c.ctx, c.Container, u); err != nil || !maps.Equal(before.Files, after.Files) {
				t.Errorf("%v, %v, want %v", after.Files, err, before.Files)
			}
		}
	})
}

// Guards against the oom_score_adj of before an Update in execs, and in what they
// leave running: runc gives each the one that the container began with.
func TestExecAfterAnUpdateOfOOMScoreAdj(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		c := n.container(r, sleeping)
		c.spec.Process.OOMScoreAdj = ptr(500)
		c.start()
		if err := r.Update(n.ctx, c.Container, Update{OOMScoreAdj: ptr(700)}); err != nil {
			t.Fatal(err)
		}
		for _, script := range []string{"true", "(sleep 1000 &)", "sleep 1000 & sleep 0.1", "(sleep 1000 & sleep 1000 &) & sleep 0.1"} {
			for range 5 {
				p := c.process(script, false)
				p.OOMScoreAdj = ptr(700)
				if _, err := r.Exec(n.ctx, Exec{Container: c.Container, Process: p}); err != nil {
					t.Error(err)
				}
			}
			for _, pid := range c.procs() {
				if adj, err := readOOMScoreAdj(pid); err == nil && adj != 700 {
					t.Errorf("%s: process %d has %d", script, pid, adj)
				}
			}
		}
	})
}

// oom_score_adj is that of every process, and of those that they fork.
func TestUpdateOOMScoreAdj(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		c := n.container(r, `sleep 1000 & (sleep 1000 & sleep 1000) & echo ready; while :; do cat /proc/self/oom_score_adj >/tmp/new; done`)
		c.start()
		c.awaitOutput("ready")
		u := Update{OOMScoreAdj: ptr(700)}
		before, err := r.Limits(c.ctx, c.Container, u)
		if err != nil || len(before.OOMScoreAdj) < 4 {
			t.Fatalf("%v, %v", before, err)
		}
		if err := r.Update(c.ctx, c.Container, u); err != nil {
			t.Fatal(err)
		}
		for _, pid := range c.procs() {
			if adj, err := readOOMScoreAdj(pid); err == nil && adj != 700 {
				t.Errorf("process %d has %d", pid, adj)
			}
		}
		await(t, "children have it", func() bool {
			_, out, _, err := c.exec("cat /tmp/new")
			return err == nil && out == "700\n"
		})
		own := os.Getpid()
		before.OOMScoreAdj[own] = 900 // not of the container: a pid may be another's by now
		if err := r.Restore(c.ctx, c.Container, before); err != nil {
			t.Error(err)
		}
		if adj, err := readOOMScoreAdj(own); err != nil || adj == 900 {
			t.Errorf("the test itself has %d, %v", adj, err)
		}
		if adj, err := readOOMScoreAdj(r.pid(t, c.Container)); err != nil || adj == 700 {
			t.Errorf("not put back: %d, %v", adj, err)
		}
	})
}

func (r *Runtime) pid(t *testing.T, c Container) int {
	t.Helper()
	st, err := r.Keeper.State(c.ID)
	if err != nil {
		t.Fatal(err)
	}
	return st.Pid
}

func TestUpdateOfWhatDoesNotRun(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		c := n.container(r, "true")
		u := Update{Resources: memoryOf(64<<20, 64<<20), OOMScoreAdj: ptr(1)}
		for range 2 { // never started, then ended
			_, err := r.Limits(c.ctx, c.Container, u)
			if !errors.Is(err, ErrNotRunning) || !errors.Is(r.Update(c.ctx, c.Container, u), ErrNotRunning) {
				t.Errorf("limits: %v", err)
			}
			if err := r.Restore(c.ctx, c.Container, Limits{Files: map[string]string{"/sys/fs/cgroup/memory" + c.Cgroup + "/memory.limit_in_bytes": "1\n"}}); err != nil {
				t.Errorf("restore: %v", err)
			}
			c.start()
			c.wait()
			c.remove()
			if err := os.MkdirAll(c.Dir, 0o700); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// The reason of an exit follows the kernel, whatever the exit code, and also when
// nobody but the keeper saw it.
func TestOOMKilledIsRecorded(t *testing.T) {
	const hog = `(x=aaaaaaaa; while :; do x=$x$x; done)`
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		for _, test := range []struct {
			script string
			code   int
			killed bool
		}{
			{hog + `; exit 3`, 3, true},
			{hog + `; exit 0`, 0, true},
			{`kill -9 $$; exec ` + `sh -c 'exit 4'`, 4, false},
			{`sh -c 'kill -9 $$'; exit 5`, 5, false},
			{`exec sh -c 'x=aaaaaaaa; while :; do x=$x$x; done'`, 137, true},
		} {
			c := n.container(r, test.script)
			c.spec.Linux.Resources = memoryOf(16<<20, 16<<20)
			c.start()
			e, err := r.Wait(c.ctx, c.Container)
			if err != nil || e.Code != test.code || e.OOMKilled != test.killed {
				t.Errorf("%q: %+v, %v, want code %d, killed %v", test.script, e, err, test.code, test.killed)
			}
		}
	})
}

func TestControls(t *testing.T) {
	leak.NeedRoot(t)
	c := FindControls()
	if len(c.PageSizes) == 0 || c.Unified != cgroups.IsCgroup2UnifiedMode() {
		t.Errorf("%+v", c)
	}
	cpus, mems, err := Cpuset("/berth-never/made/container")
	if err != nil || !strings.HasPrefix(cpus, "0") || !strings.HasPrefix(mems, "0") {
		t.Errorf("cpus %q, memory nodes %q, %v", cpus, mems, err)
	}
}
