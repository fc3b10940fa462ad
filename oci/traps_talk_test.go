package oci

import (
	"strings"
	"testing"
	"time"
)

// What a runtime says of itself: nobody reads it before the command has ended.

// Guards against a runtime that says more than a pipe holds: it waited for a reader
// until its time was over.
func TestTalkativeRuntime(t *testing.T) {
	const talk = `echo first >&2
		head -c 3000000 /dev/zero | tr '\0' x >&2; head -c 300000 /dev/zero
		echo >&2; echo last words >&2; exit 1`
	n := newNode(t)
	r, _ := n.script(talk)
	r.Timeout = 20 * time.Second
	c := n.container(r, "")
	if _, err := c.tryStart(); err == nil || !strings.Contains(err.Error(), "last words") || len(err.Error()) > 10_000 {
		t.Errorf("start: %.300v, want the last words", err)
	}
	if out, errs := c.output(); out+errs != "" {
		t.Errorf("the log has %.100q, %.100q", out, errs)
	}

	host := n.container(n.runtime("crun"), "sleep 1000")
	host.start()
	host.Runtime = r
	if _, _, _, err := host.exec(""); err == nil || !strings.Contains(err.Error(), "xxx") || len(err.Error()) > 10_000 {
		t.Errorf("exec: %.300v, want what it said", err)
	}
	host.Runtime = n.runtime("crun")
}

// Guards against taking a container's first words for its runtime's: what it writes
// before its runtime has ended is in its log, all of it.
func TestTalkativeContainer(t *testing.T) {
	n := newNode(t)
	r, _ := n.script(`container "head -c 3000000 /dev/zero | tr '\\0' z; exit 5"
		echo $! >$pid_file.later
		head -c 70000 /dev/zero | tr '\0' y >&2
		mv $pid_file.later $pid_file`)
	r.Timeout = 20 * time.Second
	c := n.container(r, "")
	c.start()
	if code := c.wait(); code != 5 {
		t.Errorf("exit code %d, want 5", code)
	}
	out, errs := c.output()
	if len(out) != 3000000 || len(errs) != 70000 {
		t.Errorf("%d and %d bytes of output, want 3000000 and 70000", len(out), len(errs))
	}
}

// Guards against a message that holds what the runtime was given, whatever its
// length.
func TestLongArgument(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		r.Timeout = 20 * time.Second
		c := n.container(r, "")
		c.spec.Process.Args = []string{strings.Repeat("long", 50_000)}
		if _, err := c.tryStart(); err == nil || len(err.Error()) > 10_000 {
			t.Errorf("start: %.300v", err)
		}
		host := n.container(r, "sleep 1000")
		host.start()
		p := *host.spec.Process
		p.Args = c.spec.Process.Args
		if _, err := r.Exec(n.ctx, Exec{Container: host.Container, Process: &p}); err == nil || len(err.Error()) > 10_000 {
			t.Errorf("exec: %.300v", err)
		}
	})
}
