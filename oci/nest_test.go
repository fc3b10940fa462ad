package oci

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"berth/oci/cgroup"
)

// An exec that is killed whole: what it has left its own tree.

// doubleFork leaves the exec's process tree and its session, says so and waits.
const doubleFork = `(setsid sleep 4991 &); while ! ps -o args | grep -q "^sleep 4991"; do :; done; echo ready; exec sleep 100`

// execWhole runs a shell script that is killed whole when it has said something,
// after ready.
func (c *container) execWhole(script string, ready func()) error {
	ctx, cancel := context.WithCancel(c.ctx)
	defer cancel()
	said := writerFunc(func([]byte) {
		ready()
		cancel()
	})
	_, err := c.Runtime.Exec(ctx, Exec{Container: c.Container, Process: c.process(script, false), Stdout: said, Whole: true})
	if !errors.Is(err, context.Canceled) {
		c.t.Errorf("exec: %v, want context.Canceled", err)
	}
	return err
}

// nests lists the cgroups below the container's.
func (c *container) nests() []string { return cgroup.Children(c.Cgroup) }

// Guards against killing by descent alone: init is the parent of what an exec
// has double-forked.
func TestExecTimeoutKillsWhatHasLeftTheTree(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		// The container forks while the exec runs: its processes are as young.
		c := n.container(r, "setsid sleep 4992 & while :; do sleep 0.01; done")
		first := c.start()
		err := c.execWhole(doubleFork, func() {})
		if errors.As(err, new(*LooseError)) {
			t.Errorf("the exec was not kept together: %v", err)
		}
		if _, left, _, err := c.exec(`ps -o args | grep "^sleep 499"`); err != nil || left != "sleep 4992\n" {
			t.Errorf("left: %q, %v, want the container's own alone", left, err)
		}
		if pids := c.procs(); !slices.Contains(pids, first) {
			t.Errorf("the container has ended: %v", pids)
		}
		if nests := c.nests(); len(nests) > 0 {
			t.Errorf("cgroups %v are left", nests)
		}
	})
}

// Where the runtime does not start the exec in its nest, what is left in the exec's
// session is killed all the same, and the error says what may not be.
func TestExecTimeoutWithoutANest(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		c := n.container(r, "sleep 1000")
		c.start()
		// It gives away what it was given, as one does that has no cgroups.
		path := filepath.Join(t.TempDir(), r.Name)
		script := fmt.Sprintf(withoutNest, "/sys/fs/cgroup/freezer"+c.Cgroup, r.Path)
		if err := os.WriteFile(path, []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
		stubborn := &Runtime{Name: r.Name, Path: path, Run: n.run, Keeper: n.keeper, Timeout: time.Minute, Version: r.Version, quirks: r.quirks}
		loose := &container{node: n, Runtime: stubborn, Container: c.Container, spec: c.spec}
		err := loose.execWhole("(sleep 4995 &); setsid sleep 4996 & echo ready; exec sleep 100", func() {})
		if !errors.As(err, new(*LooseError)) || !strings.Contains(err.Error(), "may live on") {
			t.Errorf("error %v, want one that says what may live on", err)
		}
		await(t, "the container's first process is alone", func() bool { return len(c.procs()) == 1 })
	})
}

// withoutNest is an OCI runtime, another's, that starts an exec in the container's
// cgroup: it unmounts what lies over that on v1, and drops the option of v2.
const withoutNest = `#!/bin/sh
[ ! -d %[1]s ] || umount %[1]s
for arg; do
	shift
	[ "$arg" = --cgroup ] || [ "$was" = --cgroup ] || set -- "$@" "$arg"
	was=$arg
done
exec %[2]s "$@"
`

// Guards against killing, or forgetting, what an exec that ended well has left:
// it lives, is the container's, and its cgroup goes when it is empty.
func TestExecKeepsWhatItLeaves(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		c := n.container(r, "sleep 1000")
		c.start()
		p := c.process("setsid sleep 4993 >/dev/null 2>&1 & echo $!", false)
		var out bytes.Buffer
		if code, err := r.Exec(n.ctx, Exec{Container: c.Container, Process: p, Stdout: &out, Whole: true}); code != 0 || err != nil {
			t.Fatalf("exec: %d, %v", code, err)
		}
		daemon := strings.TrimSpace(out.String())
		if nests := c.nests(); len(nests) != 1 || !strings.HasPrefix(nests[0], r.execPrefix()) {
			t.Errorf("cgroups %v, want the one of the process that is left", nests)
		}
		if pids := c.procs(); len(pids) != 2 {
			t.Errorf("processes %v of the container, want its first and the one that is left", pids)
		}
		_ = c.execWhole("echo ready; sleep 100", func() {}) // another's end is not its own
		if code, _, errs, err := c.exec("kill " + daemon); code != 0 || err != nil {
			t.Errorf("it is dead: %d, %q, %v", code, errs, err)
		}
		await(t, "it has ended", func() bool { return len(c.procs()) == 1 })
		if code, err := r.Exec(n.ctx, Exec{Container: c.Container, Process: c.process("true", false), Whole: true}); code != 0 || err != nil {
			t.Errorf("exec: %d, %v", code, err)
		}
		if nests := c.nests(); len(nests) > 0 {
			t.Errorf("cgroups %v are left", nests)
		}
	})
}

// The next berthd kills an exec that nobody waits for as its timeout would.
func TestGCTakesWhatAnAbandonedExecHasForked(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		c := n.container(r, "sleep 1000")
		c.start()
		next := n.runtime(r.Name) // knows of no exec
		collect := writerFunc(func([]byte) {
			if err := next.GC(n.ctx, func(id string) bool { return id == c.ID }); err != nil {
				t.Error(err)
			}
		})
		_, _ = r.Exec(n.ctx, Exec{Container: c.Container, Process: c.process(doubleFork, false), Stdout: collect, Whole: true})
		if pids := c.procs(); len(pids) != 1 {
			t.Errorf("processes %v, want the container's first alone", pids)
		}
	})
}

// The end of the container is that of what execs have left in it.
func TestKillReachesWhatAnExecHasLeft(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		c := n.container(r, "sleep 1000")
		c.start()
		p := c.process("setsid sleep 4994 >/dev/null 2>&1 &", false)
		if code, err := r.Exec(n.ctx, Exec{Container: c.Container, Process: p, Whole: true}); code != 0 || err != nil {
			t.Fatalf("exec: %d, %v", code, err)
		}
		if err := r.Kill(n.ctx, c.Container); err != nil {
			t.Fatal(err)
		}
		if pids := c.procs(); len(pids) > 0 {
			t.Errorf("processes %v live on", pids)
		}
		c.wait()
		c.remove()
		n.check()
	})
}

// Guards against an exec that is held by less than the container is, or that has
// the runtime's view of the node.
func TestExecInItsCgroupIsHeldByTheContainers(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		c := n.container(r, "exec sleep 1000")
		first := c.start()
		_ = c.execWhole("echo ready; exec sleep 1000", func() {
			pids := slices.DeleteFunc(c.procs(), func(pid int) bool { return pid == first })
			if len(pids) != 1 {
				t.Errorf("processes %v beside the container's first, want the exec's", pids)
				return
			}
			c.compareCgroups(first, pids[0])
			for _, ns := range []string{"mnt", "cgroup", "pid"} {
				if got, want := namespaceOf(pids[0], ns), namespaceOf(first, ns); got != want {
					t.Errorf("the exec is in %s, the container in %s", got, want)
				}
			}
		})
	})
}

// compareCgroups expects the exec in the container's cgroups but for one, where it
// is below.
func (c *container) compareCgroups(container, exec int) {
	c.t.Helper()
	own, all := cgroupsOf(c.t, exec), cgroupsOf(c.t, container)
	below := 0
	for i, line := range all {
		switch {
		case strings.HasPrefix(own[i], line+"/"+c.execPrefix()):
			below++
		case own[i] != line:
			c.t.Errorf("the exec is in %s, the container in %s", own[i], line)
		}
	}
	if below != 1 {
		c.t.Errorf("the exec has a cgroup of its own in %d hierarchies, want 1: %v", below, own)
	}
}

func namespaceOf(pid int, ns string) string {
	to, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, ns))
	return to
}

// cgroupsOf is a line for each hierarchy.
func cgroupsOf(t *testing.T, pid int) []string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("/proc", fmt.Sprint(pid), "cgroup"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(string(b)), "\n")
}
