package keeper

import (
	"errors"
	"fmt"
	"os/exec"
	"runtime"

	"golang.org/x/sys/unix"
)

// defaultTimerSlack is the kernel's, in nanoseconds.
const defaultTimerSlack = 50_000

// startAfresh starts cmd from a thread that has nothing left of what the keeper has
// inherited from whoever started berthd. All that the runner starts, containers and
// execs above all, inherits it from the runner: it is set here, once, for all of
// them. What belongs to a process rather than to a thread the runner sets itself.
//
// The error of what could not be set is refused; cmd was started all the same.
func startAfresh(cmd *exec.Cmd) (refused, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		refused = forgetInherited()
		err = cmd.Start()
	}()
	<-done
	return refused, err
}

// forgetInherited gives the calling thread what the first process of a machine
// starts with.
func forgetInherited() error {
	var refused []error
	for _, set := range []struct {
		what string
		err  error
	}{
		{"signal mask", unix.PthreadSigmask(unix.SIG_SETMASK, &unix.Sigset_t{}, nil)},
		{"CPU affinity", anyCPU()},
		// Before the timer slack, which realtime classes do not have.
		{"scheduling class and nice value", unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_NORMAL}, 0)},
		{"io priority", call(unix.SYS_IOPRIO_SET, ioprioProcess, 0, 0)},
		{"timer slack", unix.Prctl(unix.PR_SET_TIMERSLACK, defaultTimerSlack, 0, 0, 0)},
		{"memory policy", unix.SetMemPolicyDynamic(unix.MPOL_DEFAULT, nil)},
		{"policy of memory errors", unix.Prctl(unix.PR_MCE_KILL, unix.PR_MCE_KILL_CLEAR, 0, 0, 0)},
		{"personality", call(unix.SYS_PERSONALITY, 0, 0, 0)},
		{"securebits", unix.Prctl(unix.PR_SET_SECUREBITS, 0, 0, 0, 0)},
		{"session keyring", anonymousKeyring()},
	} {
		// A kernel that does not know one of them has nothing of it to pass on.
		if set.err != nil && !errors.Is(set.err, unix.ENOSYS) && !errors.Is(set.err, unix.EINVAL) {
			refused = append(refused, fmt.Errorf("reset %s: %w", set.what, set.err))
		}
	}
	return errors.Join(refused...)
}

// ioprioProcess is IOPRIO_WHO_PROCESS.
const ioprioProcess = 1

// call makes a system call without results.
func call(number, a, b, c uintptr) error {
	if _, _, errno := unix.Syscall(number, a, b, c); errno != 0 {
		return errno
	}
	return nil
}

// maxCPUs is the highest number of CPUs that a kernel can be built for.
const maxCPUs = 8192

// anyCPU lifts all restrictions but those of the thread's cpuset. A process that
// moves to another cpuset gets the CPUs of that one.
func anyCPU() error {
	all := unix.NewCPUSet(maxCPUs)
	all.Fill()
	return unix.SchedSetaffinityDynamic(0, all)
}

// anonymousKeyring leaves the session keyring of whoever started berthd, whose keys
// are not for containers.
func anonymousKeyring() error {
	_, err := unix.KeyctlInt(unix.KEYCTL_JOIN_SESSION_KEYRING, 0, 0, 0, 0)
	return err
}
