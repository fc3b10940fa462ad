package oci

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// onto makes c join the pid namespace of target.
func (c *container) onto(target *container) *container {
	c.target = &target.Container
	c.dropNamespace(specs.PIDNamespace)
	c.spec.Linux.Namespaces = append(c.spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.PIDNamespace, Path: c.PIDNS()})
	return c
}

func (n *node) pidNamespace(pid int) string {
	n.t.Helper()
	link, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid))
	if err != nil {
		n.t.Fatal(err)
	}
	return link
}

// A container that targets another is in its pid namespace, and what pins that
// goes with it.
func TestTarget(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		target := n.container(r, "exec sleep 1000")
		targetPid := target.start()
		c := n.container(r, "echo $$; exec sleep 1000").onto(target)
		pid := c.start()
		if got, want := n.pidNamespace(pid), n.pidNamespace(targetPid); got != want {
			t.Errorf("pid namespace %s, want %s", got, want)
		}
		c.awaitLog()
		if out, _ := c.output(); strings.TrimSpace(out) == "1" {
			t.Error("it is process 1, as if of a namespace of its own")
		}
		if again := c.start(); again != pid {
			t.Errorf("a second start: process %d, want %d", again, pid)
		}
		if err := r.Kill(n.ctx, target.Container); err != nil {
			t.Fatal(err)
		}
		target.wait()
		if code := c.wait(); code != 128+int(unix.SIGKILL) {
			t.Errorf("it ended with %d", code)
		}
		if err := r.Remove(n.ctx, c.Container); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Lstat(c.PIDNS()); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the pin is left: %v", err)
		}
	})
}

// Of a target that has ended, or never was, nothing is joined: least of all what
// has its pid now.
func TestTargetThatIsGone(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		ended := n.container(r, "exit 0")
		ended.start()
		ended.wait()
		never := n.container(r, "")
		for what, target := range map[string]*container{"ended": ended, "never started": never} {
			c := n.container(r, "exit 0").onto(target)
			if pid, err := c.tryStart(); !errors.Is(err, ErrNotRunning) {
				t.Errorf("%s: process %d, %v", what, pid, err)
			}
		}
	})
}
