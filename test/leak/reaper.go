package leak

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// reaped is set in the environment of the copy that runs the tests.
const reaped = "BERTH_LEAK_REAPED"

// MainUnderReaper is Main for tests that orphan processes. It runs the test
// binary again as the child of a subreaper: an orphan's exit is collected
// whatever the machine's first process does, and an orphan that still lives when
// the tests have ended is a leak.
func MainUnderReaper(m *testing.M) {
	if os.Getenv(reaped) != "" {
		os.Unsetenv(reaped)
		Main(m)
	}
	code, err := reap(os.Args, append(os.Environ(), reaped+"=1"))
	if err != nil {
		fmt.Fprintln(os.Stderr, "leak:", err)
	}
	os.Exit(code)
}

// reap runs args as a child of this process, which becomes a subreaper, and
// returns the code to exit with. Nothing else in this process may start or wait
// for children.
func reap(args, env []string) (code int, err error) {
	runtime.LockOSThread() // Pdeathsig follows the thread that started the child
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return 1, fmt.Errorf("become subreaper: %w", err)
	}
	self, err := os.Executable()
	if err != nil {
		return 1, err
	}
	child, err := syscall.ForkExec(self, args, &syscall.ProcAttr{
		Env:   env,
		Files: []uintptr{0, 1, 2},
		Sys:   &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL},
	})
	if err != nil {
		return 1, fmt.Errorf("start %s: %w", self, err)
	}
	stop := forwardSignals(child)
	defer stop()

	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil {
			return 1, fmt.Errorf("wait for the tests: %w", err)
		}
		if pid == child {
			code = status.ExitStatus()
			if status.Signaled() {
				err = fmt.Errorf("tests killed by %v", status.Signal())
				code = 128 + int(status.Signal())
			}
			return max(code, orphans()), err
		}
	}
}

// forwardSignals passes on what go test and a terminal send.
func forwardSignals(pid int) (stop func()) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for s := range signals {
			syscall.Kill(pid, s.(syscall.Signal))
		}
	}()
	return func() {
		signal.Stop(signals)
		close(signals)
		<-done
	}
}

// orphans reaps until no descendant is left, reports and kills those that live
// on, and returns 1 if there were any.
func orphans() int {
	left := settle(func() []string {
		for {
			pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
			if err != nil || pid == 0 {
				break
			}
		}
		s := snapshot{}
		s.processes()
		return s.since(nil)
	})
	if len(left) == 0 {
		return 0
	}
	report(left)
	killSince(nil)
	return 1
}
