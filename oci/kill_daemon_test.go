package oci

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"

	"berth/oci/keeper"
)

// berthd goes and comes back, and meanwhile nobody, the runner or the keeper
// dies: whoever is left keeps everything. Only when all three are gone, the code
// of an exit and the output that was not in the log are lost.
func TestKillWithoutTheDaemon(t *testing.T) {
	for _, test := range []struct {
		name           string
		keeper, runner bool   // die before the exit
		at             *death // or in it
	}{
		{name: "nobody"},
		{name: "runner", runner: true},
		{name: "keeper", keeper: true},
		{name: "both", keeper: true, runner: true},
		{name: "runner in an exit", at: &death{Step: "exit told"}},
		{name: "keeper in an exit", at: &death{Step: "exit recorded"}},
		{name: "keeper before an exit is recorded", at: &death{Step: "exit peeked"}},
	} {
		all := test.keeper && test.runner
		t.Run(strings.ReplaceAll(test.name, " ", "-"), func(t *testing.T) {
			eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
				// The last one writes more than a FIFO holds: somebody must read.
				before, meanwhile, after := n.talker(r, 2000, 11), n.talker(r, 2000, 12), n.talker(r, 5000, 13)
				pids := make(map[*container]int)
				for _, c := range []*container{before, meanwhile, after} {
					pids[c] = c.start()
				}
				// As long as somebody has stdin open, nobody reads its end.
				goes := make(map[*container]*os.File)
				for c := range pids {
					f, err := os.OpenFile(filepath.Join(c.Dir, keeper.StdinFIFO), os.O_WRONLY, 0)
					if err != nil {
						t.Fatal(err)
					}
					defer f.Close()
					goes[c] = f
				}
				tell := func(c *container) {
					if _, err := goes[c].WriteString("go\n"); err != nil {
						t.Fatal(err)
					}
				}
				tell(before)
				if code := before.wait(); code != 11 {
					t.Errorf("exit code %d, want 11", code)
				}
				h := n.hello()
				if test.at != nil {
					n.willDie(*test.at)
				}
				n.keeper.Close()
				if all { // or the keeper starts another
					pause(t, h.Pid)
				}
				if test.runner {
					end(h.Runner)
				}
				if test.keeper {
					kill(t, h.Pid)
				}
				if test.runner {
					awaitEnd(t, h.Runner)
				}
				meanwhile.awaitOutput("err 0 of a talker")
				tell(meanwhile)
				awaitEnd(t, pids[meanwhile])
				if test.at != nil {
					awaitDeath(t, n, *test.at)
				}

				n.keeper = n.openClient(self(t))
				r.Keeper = n.keeper
				if code := before.wait(); code != 11 {
					t.Errorf("exit code %d, want 11", code)
				}
				before.checkLines(4000)
				e, err := r.Wait(n.ctx, meanwhile.Container)
				if all {
					if !errors.Is(err, ErrExitUnknown) {
						t.Errorf("exit code %d, %v, want an unknown one", e.Code, err)
					}
				} else if !sameExit(e.Code, 12, err) {
					t.Errorf("exit code %d, %v, want 12", e.Code, err)
				}
				if all {
					meanwhile.checkSomeLines(4000)
				} else {
					meanwhile.checkLines(4000)
				}
				var waiting sync.WaitGroup
				waiting.Go(func() { after.checkExit(13) }) // adopts it
				await(t, "the container is known", func() bool {
					st, err := n.keeper.State(after.ID)
					return err == nil && st.Pid == pids[after]
				})
				tell(after)
				waiting.Wait()
				after.checkLines(10000)
				for c := range pids {
					c.remove()
				}
				n.check()
			})
		})
	}
}

// awaitDeath waits for a death that was ordered of a process that only the node
// knows.
func awaitDeath(t *testing.T, n *node, d death) {
	t.Helper()
	await(t, "the death", func() bool {
		_, err := os.Stat(filepath.Join(n.run, "died"))
		return err == nil
	})
	n.died(d)
}

// A runner outlives its keeper until it notices. The next one must not touch
// output before that, or a chunk would be written twice.
func TestKillKeeperOfASlowRunner(t *testing.T) {
	n := newNode(t)
	c := n.talker(n.runtime("crun"), 300, 7)
	c.start()
	slow := n.hello()
	defer end(slow.Runner)
	d := death{Step: "chunk had", Both: true, Stop: true}
	n.willDie(d)
	c.write("go\n")
	awaitDeath(t, n, d)
	await(t, "the next runner waits for the lock", func() bool {
		h := n.hello()
		locks, err := os.ReadFile("/proc/locks")
		if err != nil {
			t.Fatal(err)
		}
		waiting := regexp.MustCompile(fmt.Sprintf(`-> FLOCK +ADVISORY +WRITE +%d `, h.Runner))
		return h.Instance != slow.Instance && waiting.Match(locks)
	})
	if err := syscall.Kill(slow.Runner, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	c.checkExit(7)
	c.checkLines(600)
	c.remove()
	n.check()
}

// checkSomeLines checks that what is in the log are the first lines of n, each
// once: the rest died with the FIFO.
func (c *container) checkSomeLines(n int) {
	c.t.Helper()
	stdout, stderr := c.output()
	if !strings.HasPrefix(lines("out", 0, n), stdout) || !strings.HasPrefix(lines("err", 0, n), stderr) {
		c.t.Errorf("the log has other lines than the first: %q, %q", tail(stdout), tail(stderr))
	}
}

// An upgrade replaces the keeper's program and keeps its pid, its children and
// its files.
func TestKillNothingByAnUpgrade(t *testing.T) {
	const upgrades = 20
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		var talkers []*container
		for i := range upgrades {
			c := n.talker(r, 2000, 100+i)
			c.start()
			talkers = append(talkers, c)
		}
		h := n.hello()
		for i, c := range talkers {
			c.write("go\n")
			if err := n.keeper.Upgrade(n.ctx, self(t)); err != nil {
				t.Fatalf("upgrade %d: %v", i, err)
			}
			now := n.hello()
			if now.Pid != h.Pid || now.Instance != h.Instance || now.Runner == h.Runner {
				t.Errorf("upgrade %d: keeper %d %s, runner %d, before %d %s, %d", i,
					now.Pid, now.Instance, now.Runner, h.Pid, h.Instance, h.Runner)
			}
			h = now
		}
		for i, c := range talkers {
			if code := c.wait(); code != 100+i {
				t.Errorf("exit code %d, want %d", code, 100+i)
			}
			c.checkLines(4000)
			c.remove()
		}
		n.check()
	})
}

func TestUpgradeToNothingIsRefused(t *testing.T) {
	n := newNode(t)
	r := n.runtime("crun")
	c := n.talker(r, 300, 7)
	c.start()
	h := n.hello()
	broken := filepath.Join(n.run, "broken")
	if err := os.WriteFile(broken, []byte("no program"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{filepath.Join(n.run, "missing"), n.run, broken} {
		if err := n.keeper.Upgrade(n.ctx, path); err == nil {
			t.Errorf("upgrade to %s: no error", path)
		}
	}
	if now := n.hello(); now.Pid != h.Pid || now.Instance != h.Instance {
		t.Errorf("keeper %d %s, before %d %s", now.Pid, now.Instance, h.Pid, h.Instance)
	}
	c.write("go\n")
	if code := c.wait(); code != 7 {
		t.Errorf("exit code %d, want 7", code)
	}
	c.checkLines(600)
	c.remove()
	n.check()
}
