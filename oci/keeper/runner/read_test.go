package runner

import (
	"bytes"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"berth/oci/keeper"

	"golang.org/x/sys/unix"
)

// What a container can do to a FIFO of its own so that a reader of it waits. Each
// returns when its reader waits for sure, or would, and undoes it at the end.
var attacks = map[string]func(t *testing.T, path string){
	"takes back what it wrote": func(t *testing.T, path string) {
		thief := openPath(t, path, unix.O_RDWR|unix.O_NONBLOCK)
		var stealing sync.WaitGroup
		stop := make(chan struct{})
		stealing.Go(func() {
			for b := make([]byte, 16); ; {
				select {
				case <-stop:
					return
				default:
				}
				_, _ = unix.Write(thief, []byte("x"))
				_, _ = unix.Read(thief, b)
			}
		})
		t.Cleanup(func() {
			close(stop)
			stealing.Wait()
		})
	},
	"splices to a socket that takes nothing": func(t *testing.T, path string) {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			unix.Close(pair[0])
			unix.Close(pair[1])
		})
		fill(t, pair[0])
		spliceInto(t, path, pair[0], func() {
			_ = unix.Shutdown(pair[0], unix.SHUT_RDWR)
		})
	},
	"splices to a terminal that takes nothing": func(t *testing.T, path string) {
		master, peer := openTerminal(t)
		if err := unix.SetNonblock(int(master.Fd()), true); err != nil {
			t.Fatal(err)
		}
		fill(t, int(peer.Fd()))
		spliceInto(t, path, int(peer.Fd()), func() {
			_, _ = unix.Read(int(master.Fd()), make([]byte, 4<<10))
		})
	},
	"makes its open file non-blocking and blocking again": func(t *testing.T, path string) {
		fd := openPath(t, path, unix.O_RDWR)
		for range 100 {
			_ = unix.SetNonblock(fd, true)
			_ = unix.SetNonblock(fd, false)
		}
		_, _ = unix.Write(fd, []byte("x"))
	},
}

func openPath(t *testing.T, path string, flags int) int {
	t.Helper()
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// fill writes to fd until it would block.
func fill(t *testing.T, fd int) {
	t.Helper()
	if err := unix.SetNonblock(fd, true); err != nil {
		t.Fatal(err)
	}
	for b := bytes.Repeat([]byte("x"), 100); ; {
		if _, err := unix.Write(fd, b); err != nil {
			break
		}
	}
	for { // the rest of a buffer
		if _, err := unix.Write(fd, []byte("x")); err != nil {
			break
		}
	}
	if err := unix.SetNonblock(fd, false); err != nil {
		t.Fatal(err)
	}
}

// spliceInto splices from the FIFO at path to a file that takes nothing: once that
// has found a byte there, it holds the FIFO's lock until release.
func spliceInto(t *testing.T, path string, to int, release func()) {
	t.Helper()
	from, fd := openPath(t, path, unix.O_RDWR), openPath(t, path, unix.O_RDWR|unix.O_NONBLOCK)
	released, spliced := make(chan struct{}), make(chan struct{})
	var attack sync.WaitGroup
	attack.Go(func() {
		defer close(spliced)
		for { // a terminal may take some bytes more
			select {
			case <-released:
				return
			default:
				_, _ = unix.Splice(from, nil, to, nil, 1, 0)
			}
		}
	})
	attack.Go(func() { // again and again, since the runner may be quicker
		for {
			select {
			case <-spliced:
				return
			default:
				_, _ = unix.Write(fd, []byte("x"))
			}
		}
	})
	t.Cleanup(func() {
		close(released)
		for ended := false; !ended; {
			release()
			select {
			case <-spliced:
				ended = true
			default:
			}
		}
		attack.Wait()
	})
	await(t, "who writes waits for the FIFO's lock", inLock)
}

// inLock reports that a thread of this process waits where no signal wakes it.
func inLock() bool {
	threads, _ := filepath.Glob("/proc/self/task/*/stat")
	for _, path := range threads {
		b, _ := os.ReadFile(path)
		if _, state, _ := bytes.Cut(b, []byte(") ")); bytes.HasPrefix(state, []byte("D")) {
			return true
		}
	}
	return false
}

// testLoop is an output with its loop, which only the end of the process ends.
type testLoop struct {
	*output
	dir string
}

// loops in the environment says that this process is a child for a loop.
const loops = "BERTH_TEST_LOOP"

// newLoop runs the test in a child of its own, and is nil in the parent.
func newLoop(t *testing.T) *testLoop {
	t.Helper()
	if os.Getenv(loops) == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.count=1", "-test.timeout=60s")
		cmd.Env = append(os.Environ(), loops+"=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
		return nil
	}
	dir := t.TempDir()
	o, err := newOutput(openTestJournal(t, filepath.Join(dir, "journal")), log.New(t.Output(), "", 0))
	if err != nil {
		t.Fatal(err)
	}
	go o.loop()
	return &testLoop{o, dir}
}

// fifo is where a process's FIFO is.
func (o *testLoop) fifo(id string) string { return filepath.Join(o.dir, id+".fifo") }

// follow makes a process whose FIFO is read from now on, and returns what is written to.
func (o *testLoop) follow(t *testing.T, id string) int {
	t.Helper()
	if err := unix.Mkfifo(o.fifo(id), 0o600); err != nil {
		t.Fatal(err)
	}
	fd := openPath(t, o.fifo(id), unix.O_RDWR)
	o.takeUp(t, id, fd)
	return fd
}

// takeUp reads the output of a process from now on.
func (o *testLoop) takeUp(t *testing.T, id string, fifo int) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(o.dir, id), os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	held, err := unix.FcntlInt(uintptr(fifo), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	o.add(id, []string{keeper.FileStdout, keeper.FileLog}, []*os.File{os.NewFile(uintptr(held), id), f})
	o.resume(id)
}

// say writes to a process's FIFO, and waits until it is in the log.
func (o *testLoop) say(t *testing.T, id string, fifo int, text string) {
	t.Helper()
	if _, err := unix.Write(fifo, []byte(text)); err != nil {
		t.Fatal(err)
	}
	o.await(t, id, text)
}

// await waits until text is in the log of a process.
func (o *testLoop) await(t *testing.T, id, text string) {
	t.Helper()
	await(t, text+" of "+id+" is in its log", func() bool {
		b, err := os.ReadFile(filepath.Join(o.dir, id))
		return err == nil && bytes.Contains(b, []byte(text))
	})
}

// await waits for what has no event of its own.
func await(t *testing.T, what string, is func() bool) {
	t.Helper()
	timeout := time.After(10 * time.Second)
	for again := time.NewTicker(time.Millisecond); !is(); {
		select {
		case <-again.C:
		case <-timeout:
			t.Fatalf("not in time: %s", what)
		}
	}
}

// Guards against a container that makes the runner wait for its FIFO: the output of
// all others stood still, and so did starts and ends.
func TestNoStreamHoldsUpAnother(t *testing.T) {
	for name, attack := range attacks {
		t.Run(name, func(t *testing.T) {
			o := newLoop(t)
			if o == nil {
				return
			}
			victim, attacker := o.follow(t, "victim"), o.follow(t, "attacker")
			o.say(t, "attacker", attacker, "ready\n")
			attack(t, o.fifo("attacker"))
			for i := range 50 {
				o.say(t, "victim", victim, fmt.Sprintf("line %d\n", i))
			}
			o.say(t, "another", o.follow(t, "another"), "started\n")
			for _, id := range []string{"another", "victim", "attacker"} {
				o.close(o.drain(id))
			}
		})
	}
}

// Guards against a runner that takes up a container whose FIFO is locked already,
// and against an end of the container that waits for who locked it.
func TestALockedFIFOIsTakenUp(t *testing.T) {
	o := newLoop(t)
	if o == nil {
		return
	}
	if err := unix.Mkfifo(o.fifo("attacker"), 0o600); err != nil {
		t.Fatal(err)
	}
	holder := openPath(t, o.fifo("attacker"), unix.O_RDWR)
	attacks["splices to a socket that takes nothing"](t, o.fifo("attacker"))
	o.takeUp(t, "attacker", holder)
	o.say(t, "victim", o.follow(t, "victim"), "line\n")
	for _, id := range []string{"attacker", "victim"} {
		o.close(o.drain(id))
	}
}
