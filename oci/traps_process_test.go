package oci

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"berth/oci/keeper"
	"berth/test/leak"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Processes and exits: what went wrong for the obvious way, a test each.

// Guards against one process that is subreaper, reaps whatever ends and uses
// os/exec at once (runtime commands fail with "waitid: no child processes"), and
// against waitid right after `crun run --detach` (its helper is the parent
// still): every command works, every code is right, no zombie stays.
func TestManyStartsAndExecsAtOnce(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		const workers = 8
		rounds := 25
		if r.Name == "runc" { // six times the work
			rounds = 8
		}
		host := n.container(r, "sleep 1000")
		host.start()
		var all sync.WaitGroup
		for w := range workers {
			var mine []*container
			for i := range rounds {
				mine = append(mine, n.container(r, fmt.Sprintf("exit %d", w*rounds+i)))
			}
			all.Go(func() {
				for i, c := range mine {
					want := w*rounds + i
					if _, err := c.tryStart(); err != nil {
						t.Error(err)
						continue
					}
					if e, err := r.Wait(n.ctx, c.Container); err != nil || e.Code != want {
						t.Errorf("exit code %d, %v, want %d", e.Code, err, want)
					}
					code, _, _, err := host.exec(fmt.Sprintf("exit %d", want))
					if err != nil || code != want {
						t.Errorf("exec: exit code %d, %v, want %d", code, err, want)
					}
				}
			})
		}
		all.Wait()
		host.remove()
		n.awaitIdle()
	})
}

// Guards against reaping before the exit record is written: a kill between the
// two loses the code. While the runner is stopped the output is not drained, so
// the process must be a zombie still when its record is there.
func TestExitIsRecordedBeforeItIsReaped(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		c := n.container(r, "read x; exit 9")
		c.stdin = true
		pid := c.start()
		h := n.hello()
		pause(t, h.Runner)
		c.write("end\n")
		await(t, "the exit record is there", func() bool {
			_, err := keeper.ReadExit(c.Dir)
			return err == nil
		})
		if p := lookAt(pid); p.state != "Z" {
			t.Errorf("the recorded process is %v, want a zombie", p)
		}
		kill(t, h.Pid)
		kill(t, h.Runner)
		if code := c.wait(); code != 9 {
			t.Errorf("exit code %d after the keeper's death, want 9", code)
		}
	})
}

// Guards against taking ECHILD for "never": a runtime's helper can be the parent
// of a container that has ended already. Its stat has the code (field 52).
func TestExitOfAnotherParentsZombie(t *testing.T) {
	n := newNode(t)
	r, _ := n.script(`setsid sh -c '. $here/head
			container "until grep -q cat /proc/\$\$/comm; do :; done; exit 7"
			echo $! >$pid_file
			echo >$here/ready
			exec cat $here/end' &
		read x <$here/ready`, "ready", "end")
	c := n.container(r, "")
	c.start()
	if code := c.wait(); code != 7 {
		t.Errorf("exit code %d, want 7", code)
	}
}

// Guards against asking too late: the helper reaps the container while the
// keeper is stopped, so that only PIDFD_GET_INFO has the code.
func TestExitReapedByAnotherParent(t *testing.T) {
	n := newNode(t)
	r, flags := n.script(`setsid sh -c '. $here/head
			container "read x <$here/go; exit 7"
			echo $! >$pid_file
			echo >$here/ready
			wait $!
			exec cat $here/end' &
		read x <$here/ready`, "ready", "go", "end")
	c := n.container(r, "")
	pid := c.start()
	goOn := pause(t, n.hello().Pid)
	flags["go"].raise()
	await(t, "the helper has reaped the container", func() bool { return lookAt(pid).pid == 0 })
	goOn()
	if code := c.wait(); code != 7 {
		t.Errorf("exit code %d, want 7", code)
	}
}

// Guards against reaping an unknown zombie while a runtime command is in flight:
// it may be the container whose pid file is not written yet.
func TestUnknownZombieOfACommandInFlight(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, real *Runtime) {
		r, flags := n.script(`setsid sh -c '. $here/head
				container "while kill -0 \$\$; do :; done; exit 5"
				echo $! >$here/pid' &
			wait
			echo >$here/orphaned
			read x <$here/go
			cp $here/pid $pid_file`, "orphaned", "go")
		c := n.container(r, "")
		started := make(chan error, 1)
		go func() {
			_, err := c.tryStart()
			started <- err
		}()
		flags["orphaned"].await()
		pid := readInt(t, filepath.Join(filepath.Dir(r.Path), "pid"))
		await(t, "the container is the keeper's zombie", func() bool {
			p := lookAt(pid)
			return p.state == "Z" && p.parent == n.hello().Pid
		})
		// Another one's life makes the keeper look for zombies.
		other := n.container(real, "exit 3")
		other.start()
		if code := other.wait(); code != 3 {
			t.Errorf("exit code %d of the other, want 3", code)
		}
		if p := lookAt(pid); p.state != "Z" {
			t.Errorf("the container is %v, want a zombie", p)
		}
		flags["go"].raise()
		if err := <-started; err != nil {
			t.Fatal(err)
		}
		if code := c.wait(); code != 5 {
			t.Errorf("exit code %d, want 5", code)
		}
		n.awaitIdle()
	})
}

// Guards against helpers that a killed runtime leaves, before and after there is
// a pid file, also one in a session of its own that starts the container later.
func TestHangingRuntimeIsKilledWhole(t *testing.T) {
	for _, test := range []struct{ name, script string }{
		{"before its pid file", `sleep 1000`},
		{"after its pid file", `container "sleep 1000"; echo $! >$pid_file; wait`},
		{"with a helper in another session", `setsid sleep 1000 & sleep 1000`},
		{"while it writes its pid file", `touch ${pid_file%/*}/.${pid_file##*/}; sleep 1000`},
		{"with its binary mounted", `touch $_LIBCONTAINER_STATEDIR/a $_LIBCONTAINER_STATEDIR/b
			mount --bind $0 $_LIBCONTAINER_STATEDIR/a
			sleep 1000`},
		{"with a helper that goes on", `setsid sh -c '. $here/head
			echo $$ >$here/helper
			while kill -0 $PPID; do :; done
			container "sleep 1000"; echo $! >$pid_file' &
			sleep 1000`},
	} {
		t.Run(test.name, func(t *testing.T) {
			n := newNode(t)
			r, _ := n.script(test.script)
			r.Timeout = 100 * time.Millisecond
			c := n.container(r, "")
			_, err := c.tryStart()
			if err == nil || !strings.Contains(err.Error(), "did not end within 100ms") {
				t.Errorf("start: %v, want that it did not end", err)
			}
			c.remove()
			n.awaitIdle()
		})
	}
}

// Guards against a killed `run` that ends in a running container all the same:
// of runtimes killed before a pid file existed, some do.
func TestRuntimeKilledAtAnyMoment(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		for i := range 20 {
			r.Timeout = time.Duration(i+1) * 2 * time.Millisecond
			c := n.container(r, "sleep 1000")
			_, err := c.tryStart()
			t.Logf("killed after %v: %v", r.Timeout, err)
			c.remove()
			n.awaitIdle()
		}
	})
}

// Guards against a first process of the machine that reaps nothing: orphans of
// the tests, which kill keepers, would stay zombies for ever.
func TestOrphansOfTheTestsAreReaped(t *testing.T) {
	leak.NeedRoot(t)
	if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", os.Getppid())); err != nil || exe != self(t) {
		t.Errorf("the tests' parent is %s, %v, want this program", exe, err)
	}
	out, err := exec.Command("sh", "-c", "sleep 1000 >/dev/null 2>&1 & echo $!").Output()
	if err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Sscan(string(out), &pid); err != nil {
		t.Fatal(err)
	}
	if p := lookAt(pid); p.parent != os.Getppid() {
		t.Errorf("the orphan's parent is %d, want the tests' own, %d", p.parent, os.Getppid())
	}
	kill(t, pid)
	await(t, "the orphan is reaped", func() bool { return lookAt(pid).pid == 0 })
}

// Guards against a kill of the container that misses what forks meanwhile.
func TestKillForkBomb(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		for _, hostPID := range []bool{false, true} {
			c := n.container(r, `spin() { while :; do : & : & wait; done; }
				i=0; while [ $i -lt 30 ]; do spin & i=$((i+1)); done; wait`)
			limit := int64(400)
			c.spec.Linux.Resources = &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: &limit}}
			if hostPID {
				c.dropNamespace(specs.PIDNamespace)
			}
			c.start()
			await(t, "the bomb has gone off", func() bool { return len(c.procs()) > 10 })
			if err := r.Kill(n.ctx, c.Container); err != nil {
				t.Error(err)
			}
			if code := c.wait(); code != 137 {
				t.Errorf("exit code %d, want 137", code)
			}
			c.remove()
			n.awaitIdle()
		}
	})
}

// Guards against waiting for a process that was stopped with `kill -STOP`.
func TestKillAndRemoveStoppedInit(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		for name, end := range map[string]func(*container){
			"kill": func(c *container) {
				if err := r.Kill(n.ctx, c.Container); err != nil {
					t.Error(err)
				}
				if code := c.wait(); code != 137 {
					t.Errorf("exit code %d, want 137", code)
				}
			},
			"remove": (*container).remove,
		} {
			c := n.container(r, "sleep 1000 & sleep 1000")
			c.start()
			if err := r.Signal(n.ctx, c.Container, syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			end(c)
			if left := c.procs(); len(left) > 0 {
				t.Errorf("after %s: %v lives", name, left)
			}
		}
	})
}

// Guards against a removal that fails for what is gone: the kubelet repeats it.
func TestRemoveTwice(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		never := n.container(r, "")
		never.remove()
		c := n.container(r, "sleep 1000")
		c.start()
		c.remove()
		c.remove()
		if err := r.Signal(n.ctx, c.Container, syscall.SIGTERM); !errors.Is(err, ErrNotRunning) {
			t.Errorf("signal after the removal: %v, want ErrNotRunning", err)
		}
		n.awaitIdle()
	})
}

// Guards against a message that cannot hold all the processes of a node: neither
// the daemon nor a runner could start.
func TestKeeperOfManyProcesses(t *testing.T) {
	n := newNode(t)
	const many = 1200
	for i := range many {
		spec := keeper.Spec{ID: fmt.Sprintf("%064d", i), Dir: n.run}
		if _, err := n.keeper.Add(n.ctx, spec); err != nil {
			t.Fatal(err)
		}
	}
	kill(t, n.hello().Runner)
	again := n.openClient(self(t))
	defer again.Close()
	if ids := again.IDs(); len(ids) != many {
		t.Errorf("%d processes are known, want %d", len(ids), many)
	}
	c := n.container(n.runtime("crun"), "exit 3")
	c.start()
	if code := c.wait(); code != 3 {
		t.Errorf("exit code %d, want 3", code)
	}
}
