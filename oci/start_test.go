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
