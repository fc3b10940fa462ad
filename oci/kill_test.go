package oci

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"unsafe"

	"berth/oci/keeper"

	"golang.org/x/sys/unix"
)

// Deaths at every step of an exit, a start, a reopened log and a chunk of
// output, for which keeper.Step has names: every code is right, every line is
// there once, nothing is left.

// death is at which step a keeper or a runner is to die, as the file "die" in
// its run directory says.
type death struct {
	Step string
	Skip int    // how many times to pass by first
	Tear string // the log to be written to next: it dies in the middle of that
	Both bool   // a runner takes its keeper along
	Stop bool   // it only stops
}

func (d death) String() string {
	s := d.Step
	if d.Skip > 0 {
		s = fmt.Sprintf("%s %d", s, d.Skip)
	}
	if d.Tear != "" {
		s += " torn"
	}
	if d.Both {
		s += " both"
	}
	return s
}

// dieHere is keeper.Step of the test binary.
func dieHere(step string) {
	dieMu.Lock()
	defer dieMu.Unlock()
	run := os.Args[len(os.Args)-1]
	b, err := os.ReadFile(filepath.Join(run, "die"))
	if err != nil {
		return
	}
	var d death
	if json.Unmarshal(b, &d) != nil || d.Step != step {
		return
	}
	if passed[d] < d.Skip {
		passed[d]++
		return
	}
	if os.Rename(filepath.Join(run, "die"), filepath.Join(run, "died")) != nil {
		return
	}
	if d.Both {
		_ = syscall.Kill(os.Getppid(), syscall.SIGKILL)
	}
	if d.Tear != "" {
		dieWriting(d.Tear)
		return
	}
	if d.Stop {
		_ = syscall.Kill(os.Getpid(), syscall.SIGSTOP)
		return
	}
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}

var (
	dieMu  sync.Mutex
	passed = make(map[death]int)
)

// dieWriting lets the kernel kill this process once it has written a few bytes
// more to the log: a file size limit, and the default action of its signal.
func dieWriting(log string) {
	st, err := os.Stat(log)
	if err != nil {
		return
	}
	size := uint64(st.Size()) + 7
	_ = unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
	_ = unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: size, Max: size})
	var byDefault struct{ handler, flags, restorer, mask uintptr }
	_, _, _ = unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(unix.SIGXFSZ), uintptr(unsafe.Pointer(&byDefault)), 0, 8, 0, 0)
}

// willDie orders a death.
func (n *node) willDie(d death) {
	n.t.Helper()
	// A runner that answers, if only that it was asked nonsense, has taken over:
	// the steps of that are not counted.
	_ = n.keeper.CallRunner(n.ctx, "nonsense", nil, nil, nil)
	b, err := json.Marshal(d)
	if err != nil {
		n.t.Fatal(err)
	}
	path := filepath.Join(n.run, "die")
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		n.t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		n.t.Fatal(err)
	}
}

// died checks that the ordered death has happened.
func (n *node) died(d death) {
	n.t.Helper()
	if err := os.Remove(filepath.Join(n.run, "died")); err != nil {
		n.t.Errorf("step %v was not reached: %v", d, err)
		_ = os.Remove(filepath.Join(n.run, "die"))
	}
}

// check reports what containers and execs that are removed have left.
func (n *node) check() {
	n.t.Helper()
	for _, dir := range []string{keeper.ConsoleDir(n.run), filepath.Join(n.run, "exec"), filepath.Join(n.run, "runtimes", "*")} {
		if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) > 0 {
			n.t.Errorf("left: %v", left)
		}
	}
	if ids := append(n.keeper.IDs(), n.hello().IDs...); len(ids) > 0 {
		n.t.Errorf("still known: %v", ids)
	}
}

// checkExit checks how a container ended. Where a keeper has died, a kernel
// without PIDFD_INFO_EXIT may leave that unknown.
func (c *container) checkExit(want int) {
	c.t.Helper()
	e, err := c.Runtime.Wait(c.ctx, c.Container)
	if !sameExit(e.Code, want, err) {
		c.t.Errorf("exit code %d, %v, want %d", e.Code, err, want)
	}
}

func sameExit(code, want int, err error) bool {
	if errors.Is(err, ErrExitUnknown) && errors.Is(pidfdExit(), errNotSupported) {
		return true
	}
	return err == nil && code == want
}

var errNotSupported = errors.New("this kernel lacks it")

// pidfdExit returns errNotSupported where the kernel does not tell the exit code
// of a process that another one has reaped.
var pidfdExit = sync.OnceValue(func() error {
	cmd := exec.Command("sh", "-c", "exit 3")
	if err := cmd.Start(); err != nil {
		return err
	}
	fd, err := unix.PidfdOpen(cmd.Process.Pid, 0)
	_ = cmd.Wait()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	info := unix.PidfdInfo{Mask: unix.PIDFD_INFO_EXIT}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.PIDFD_GET_INFO, uintptr(unsafe.Pointer(&info)))
	if errno != 0 || info.Mask&unix.PIDFD_INFO_EXIT == 0 {
		return fmt.Errorf("PIDFD_INFO_EXIT, from Linux 6.15 on: %w", errNotSupported)
	}
	return nil
})

// lines is what a talker writes to a stream.
func lines(stream string, from, to int) string {
	var b strings.Builder
	for i := from; i < to; i++ {
		fmt.Fprintf(&b, "%s %d of a talker\n", stream, i)
	}
	return b.String()
}

// say is a shell function: it writes the lines from $1 up to $2.
const say = `
say() {
	i=$1
	while [ $i -lt $2 ]; do
		echo "out $i of a talker"
		echo "err $i of a talker" >&2
		i=$((i+1))
	done
}
`

// talker is a container that writes twice so many lines to each stream, half of them after
// it was told to go, and exits with the code.
func (n *node) talker(r *Runtime, lines, code int) *container {
	n.t.Helper()
	c := n.container(r, fmt.Sprintf(`%s
		say 0 %d
		read x
		say %[2]d %d
		exit %d`, say, lines, 2*lines, code))
	c.stdin = true
	return c
}

// checkLines checks that n lines are in the log, or in the parts of it that were
// rotated away.
func (c *container) checkLines(n int, parts ...string) {
	c.t.Helper()
	var stdout, stderr string
	for _, part := range append(parts, c.log) {
		out, errs := parseLog(c.t, part)
		stdout, stderr = stdout+out, stderr+errs
	}
	sameText(c.t, "stdout", stdout, lines("out", 0, n))
	sameText(c.t, "stderr", stderr, lines("err", 0, n))
}

// sameText shows where two long texts part.
func sameText(t *testing.T, name, got, want string) {
	t.Helper()
	if got == want {
		return
	}
	i := 0
	for i < len(got) && i < len(want) && got[i] == want[i] {
		i++
	}
	excerpt := func(s string) string { return s[max(0, i-40):min(len(s), i+40)] }
	t.Errorf("%s of %d bytes, want %d, differs at %d: %q, want %q", name, len(got), len(want), i, excerpt(got), excerpt(want))
}

// execWhileAlive runs an exec that is told to end when berthd has its pidfd.
func (c *container) execWhileAlive(pid int) {
	c.t.Helper()
	type result struct {
		code     int
		out, err string
		failure  error
	}
	done := make(chan result, 1)
	go func() {
		var r result
		r.code, r.out, r.err, r.failure = c.exec("mkfifo /tmp/exec; read x </tmp/exec; echo out; echo err >&2; exit 9")
		done <- r
	}()
	await(c.t, "the exec runs", func() bool {
		if len(done) > 0 {
			c.t.Fatalf("exec: %+v", <-done)
		}
		for _, id := range c.Keeper.IDs() {
			st, err := c.Keeper.State(id)
			if err == nil && strings.HasPrefix(id, "exec-") && st.Pid != 0 {
				return true
			}
		}
		return false
	})
	await(c.t, "the exec reads", func() bool {
		f, err := os.OpenFile(fmt.Sprintf("/proc/%d/root/tmp/exec", pid), os.O_WRONLY|unix.O_NONBLOCK, 0)
		if err != nil {
			return false
		}
		defer f.Close()
		_, err = f.WriteString("end\n")
		return err == nil
	})
	if r := <-done; !sameExit(r.code, 9, r.failure) || r.out != "out\n" || r.err != "err\n" {
		c.t.Errorf("exec: %+v", r)
	}
}

// Steps of a container's life, by what is done when a keeper or a runner dies
// there. The first two "get asked" of a start are the runner's, before and after
// the runtime; the third is berthd's.
var (
	startSteps = []death{
		{Step: "add done"}, {Step: "get asked"}, {Step: "start begun"}, {Step: "start ran"},
		{Step: "settle asked"}, {Step: "settle done"}, {Step: "start settled"}, {Step: "get asked", Skip: 1},
		{Step: "get asked", Skip: 2},
	}
	execSteps = append([]death{
		{Step: "exit peeked"}, {Step: "exit recorded"}, {Step: "exit drained"}, {Step: "exit reaped"},
	}, startSteps...)
	reopenSteps = []death{{Step: "put asked"}, {Step: "put done"}, {Step: "reopen asked"}, {Step: "reopen done"}}
	exitSteps   = []death{
		{Step: "chunk seen"}, {Step: "chunk expected"}, {Step: "chunk read"}, {Step: "chunk had"},
		{Step: "chunk had", Tear: "log"}, {Step: "chunk written"}, {Step: "chunk had", Skip: 1, Tear: "log"},
		{Step: "chunk read", Both: true}, {Step: "chunk had", Tear: "log", Both: true}, {Step: "chunk written", Both: true},
		{Step: "exit peeked"}, {Step: "exit recorded"}, {Step: "exit told"}, {Step: "exit killed"},
		{Step: "exit draining"}, {Step: "exit draining", Skip: 1}, {Step: "exit emptied"},
		{Step: "exit drained"}, {Step: "exit reaped"},
		{Step: "exit told", Both: true}, {Step: "exit draining", Both: true}, {Step: "exit emptied", Both: true},
	}
)

// Every life has four deaths, one of each kind.
func TestKillAtEveryStep(t *testing.T) {
	for i, exit := range exitSteps {
		start, exec, reopen := startSteps[i%len(startSteps)], execSteps[i%len(execSteps)], reopenSteps[i%len(reopenSteps)]
		name := fmt.Sprintf("%v,%v,%v,%v", start, exec, reopen, exit)
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
				c := n.talker(r, 300, 7)
				n.willDie(start)
				pid := c.start()
				n.died(start)

				n.willDie(exec)
				c.execWhileAlive(pid)
				n.died(exec)

				rotated := c.log + ".1"
				if err := os.Rename(c.log, rotated); err != nil {
					t.Fatal(err)
				}
				n.willDie(reopen)
				c.reopenLog()
				n.died(reopen)

				if exit.Tear != "" {
					exit.Tear = c.log
				}
				n.willDie(exit)
				c.write("go\n")
				c.checkExit(7)
				c.checkLines(600, rotated)
				n.died(exit)
				c.remove()

				next := n.container(r, "exit 3")
				next.start()
				if code := next.wait(); code != 3 {
					t.Errorf("next container: exit code %d, want 3", code)
				}
				next.remove()
				n.check()
			})
		})
	}
}
