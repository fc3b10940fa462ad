package oci

import (
	"errors"
	"strings"
	"syscall"
	"testing"
)

// A terminal's master is with the keeper from when the runtime has sent it, and
// with the runner and berthd right after that. A keeper that dies in between
// takes it along: the program has begun, and goes on without its terminal.
func TestKillAStartWithATerminal(t *testing.T) {
	for _, d := range startSteps {
		t.Run(strings.ReplaceAll(d.String(), " ", "-"), func(t *testing.T) {
			eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
				c := n.container(r, say+`
					trap "exit 7" TERM
					say 0 100
					sleep 1000 & wait`)
				c.spec.Process.Terminal = true
				n.willDie(d)
				_, err := c.tryStart()
				n.died(d)
				if err != nil {
					t.Error(err)
				}
				lost := d.Step == "settle done"
				if !lost {
					c.awaitOutput("err 99 of a talker")
				}
				if err := r.Signal(n.ctx, c.Container, syscall.SIGTERM); err != nil {
					t.Error(err)
				}
				c.checkExit(7)
				if !lost {
					c.checkTerminal(100)
				}
				c.remove()

				again := n.container(r, "echo again; exit 3")
				again.spec.Process.Terminal = true
				again.start()
				if code := again.wait(); code != 3 {
					t.Errorf("next container: exit code %d, want 3", code)
				}
				again.remove()
				n.check()
			})
		})
	}
}

// checkTerminal checks the lines of both streams as a terminal joins them.
func (c *container) checkTerminal(n int) {
	c.t.Helper()
	stdout, _ := c.output()
	out, errs := lines("out", 0, n), lines("err", 0, n)
	var want strings.Builder
	for line := range strings.Lines(out) {
		want.WriteString(line)
		errLine, rest, _ := strings.Cut(errs, "\n")
		want.WriteString(errLine + "\n")
		errs = rest
	}
	sameText(c.t, "terminal", stdout, strings.ReplaceAll(want.String(), "\n", "\r\n"))
}

// A container may end before its start has. The runner holds a pidfd of it by then:
// although the keeper dies, which is its parent, its code is known. When the runner
// dies as well, that depends on whether berthd has been scheduled meanwhile. An exec
// may be interrupted; no code is wrong.
func TestKillInTheStartOfAShortLife(t *testing.T) {
	for _, d := range []death{
		{Step: "settle asked"}, {Step: "settle done"}, {Step: "get asked", Skip: 1},
		{Step: "start begun", Both: true}, {Step: "start ran", Both: true}, {Step: "start settled", Both: true},
	} {
		t.Run(strings.ReplaceAll(d.String(), " ", "-"), func(t *testing.T) {
			eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
				c := n.container(r, "echo begun; exit 5")
				n.willDie(d)
				c.start()
				n.died(d)
				if e, err := r.Wait(n.ctx, c.Container); !(d.Both && errors.Is(err, ErrExitUnknown)) && !sameExit(e.Code, 5, err) {
					t.Errorf("exit code %d, %v, want 5", e.Code, err)
				}
				if out, _ := c.output(); out != "begun\n" {
					t.Errorf("output %q, want that of one program", out)
				}
				c.remove()

				host := n.container(r, "sleep 1000")
				host.start()
				n.willDie(d)
				code, _, _, err := host.exec("exit 9")
				n.died(d)
				if !errors.Is(err, ErrInterrupted) && (err != nil || code != 9) {
					t.Errorf("exec: exit code %d, %v, want 9 or interrupted", code, err)
				}
				host.remove()
				n.check()
			})
		})
	}
}
