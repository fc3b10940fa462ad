package oci

import (
	"strings"
	"testing"
)

func TestStartAndExitCodes(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		for _, test := range []struct {
			script         string
			code           int
			stdout, stderr string
		}{
			{"echo out; echo err >&2; exit 3", 3, "out\n", "err\n"},
			{"printf partial; exit 0", 0, "partial", ""},
			{"kill -9 $$", 137, "", ""}, // ignored: init of its pid namespace
		} {
			c := n.container(r, test.script)
			if strings.Contains(test.script, "kill") {
				c.spec.Linux.Namespaces = c.spec.Linux.Namespaces[1:] // the host's pid namespace
			}
			c.start()
			if code := c.wait(); code != test.code {
				t.Errorf("%q: exit code %d, want %d", test.script, code, test.code)
			}
			stdout, stderr := c.output()
			if stdout != test.stdout || stderr != test.stderr {
				t.Errorf("%q: output %q, %q, want %q, %q", test.script, stdout, stderr, test.stdout, test.stderr)
			}
		}
	})
}

func TestExec(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		c := n.container(r, "sleep 1000")
		c.start()
		code, out, errs, err := c.exec("echo out; echo err >&2; exit 7")
		if err != nil || code != 7 || out != "out\n" || errs != "err\n" {
			t.Errorf("exec: code %d, %q, %q, %v", code, out, errs, err)
		}
	})
}

// Guards against a runtime's message that comes twice: as the error, and as
// output of a command that never ran.
func TestExecThatCannotStart(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		c := n.container(r, sleeping)
		c.start()
		for _, terminal := range []bool{false, true} {
			p := c.process("", terminal)
			p.Args = []string{"nonesuch"}
			var out, errs strings.Builder
			_, err := r.Exec(n.ctx, Exec{Container: c.Container, Process: p, Stdout: &out, Stderr: &errs})
			if err == nil || strings.Count(err.Error(), "nonesuch") != 1 || strings.Contains(err.Error(), "\n") {
				t.Errorf("terminal %v: error %q, want one line that names the command once", terminal, err)
			}
			if out.Len() > 0 || errs.Len() > 0 {
				t.Errorf("terminal %v: output %q, %q of a command that did not run", terminal, out.String(), errs.String())
			}
		}
	})
}

// A runtime that has no word for its log may have one on stderr.
func TestExecOfARuntimeWithoutALog(t *testing.T) {
	n := newNode(t)
	r := n.runtime("runc")
	c := n.container(r, sleeping)
	c.start()
	silent, _ := n.script("echo the last words >&2; exit 1\n")
	silent.Name = r.Name
	var errs strings.Builder
	_, err := silent.Exec(n.ctx, Exec{Container: c.Container, Process: c.process("true", false), Stderr: &errs})
	if err == nil || !strings.Contains(err.Error(), "the last words") || errs.Len() > 0 {
		t.Errorf("error %v, stderr %q", err, errs.String())
	}
}

// Guards against a start that hangs, or leaves something, when the runtime was
// uninstalled under a running daemon.
func TestStartWithoutItsRuntime(t *testing.T) {
	n := newNode(t)
	r := n.runtime("runc")
	r.Path = "/nowhere/runc"
	c := n.container(r, "true")
	if _, err := c.tryStart(); err == nil || !strings.Contains(err.Error(), "/nowhere/runc") {
		t.Errorf("start: %v, want an error that names the runtime", err)
	}
	c.remove()
	n.awaitIdle()
}
