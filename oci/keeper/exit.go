package keeper

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// exitCode turns a wait status into the code that CRI reports.
func exitCode(ws unix.WaitStatus) int {
	if ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return ws.ExitStatus()
}

// peekExit returns the exit code of the process behind pidfd without reaping
// it, whoever its parent is; false while nobody can tell yet.
//
// A child of ours is a zombie until we reap it. Another parent's (ours until a
// keeper died, or not ours yet because a helper of the runtime still is its
// parent) shows its wait status in /proc/PID/stat while it is a zombie, and on
// Linux 6.15 and later through its pidfd once it was reaped.
func peekExit(pidfd, pid int) (code int, ok bool) {
	if code, err := waitPidfd(pidfd, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT); err == nil {
		return code, true
	}
	// Asked in this order, since a pid can be another's once it was reaped.
	if ws, ok := zombieStatus(pid); ok && readable(pidfd) && !reaped(pidfd) {
		return exitCode(ws), true
	}
	info := unix.PidfdInfo{Mask: unix.PIDFD_INFO_EXIT}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(pidfd), unix.PIDFD_GET_INFO, uintptr(unsafe.Pointer(&info)))
	if errno == 0 && info.Mask&unix.PIDFD_INFO_EXIT != 0 {
		return exitCode(unix.WaitStatus(info.Exit_code)), true
	}
	return 0, false
}

// reaped reports that the process behind pidfd has left the kernel: its exit
// code, if peekExit does not have it, is lost.
func reaped(pidfd int) bool {
	return errors.Is(unix.PidfdSendSignal(pidfd, 0, nil, 0), unix.ESRCH)
}

// readable reports that the process behind pidfd has ended.
func readable(pidfd int) bool {
	p := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	n, err := unix.Poll(p, 0)
	return err == nil && n > 0
}

var errNoExit = errors.New("not a child, or still running")

// waitPidfd is waitid(P_PIDFD).
func waitPidfd(pidfd, options int) (code int, err error) {
	// The kernel's siginfo for SIGCHLD; x/sys leaves the union opaque.
	var si struct {
		signo, errno, code, _ int32
		pid                   int32
		uid                   uint32
		status                int32
		_                     [100]byte
	}
	for {
		err = unix.Waitid(unix.P_PIDFD, pidfd, (*unix.Siginfo)(unsafe.Pointer(&si)), options, nil)
		if err != unix.EINTR {
			break
		}
	}
	switch {
	case err != nil:
		return 0, err
	case si.pid == 0:
		return 0, errNoExit
	case si.code == cldExited:
		return int(si.status), nil
	}
	return 128 + int(si.status), nil // killed, with or without a core
}

const cldExited = 1 // CLD_EXITED

// zombieStatus reads the wait status of a zombie: field 52 of /proc/PID/stat.
func zombieStatus(pid int) (unix.WaitStatus, bool) {
	n, ok := zombieField(pid, 52)
	return unix.WaitStatus(n), ok
}

// neverExecuted says of a zombie that it has executed no program since it was
// forked: PF_FORKNOEXEC in its flags, field 9 of /proc/PID/stat.
func neverExecuted(pid int) bool {
	const forkNoExec = 0x40
	flags, ok := zombieField(pid, 9)
	return ok && flags&forkNoExec != 0
}

// zombieField reads a number from /proc/PID/stat of a zombie.
func zombieField(pid, field int) (uint64, bool) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, false
	}
	// The command may hold spaces and parentheses; the last one ends it. What
	// follows starts with field 3.
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(fields) < 50 || string(fields[0]) != "Z" {
		return 0, false
	}
	n, err := strconv.ParseUint(string(fields[field-3]), 10, 32)
	return n, err == nil
}

// WriteExit writes the exit record of the process in dir: whole or not at all.
func WriteExit(dir string, e Exit) error {
	b, err := json.Marshal(e)
	if err != nil {
		return err
	}
	path := filepath.Join(dir, ExitFile)
	err = os.WriteFile(path+".new", b, 0o600)
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		_ = os.Remove(path + ".new")
	}
	return err
}

// ReadExit reads the exit record in dir; fs.ErrNotExist if the process has not
// been seen to end.
func ReadExit(dir string) (Exit, error) {
	var e Exit
	b, err := os.ReadFile(filepath.Join(dir, ExitFile))
	if err != nil {
		return e, err
	}
	return e, json.Unmarshal(b, &e)
}

// ReadPid reads the runtime's pid file in dir; 0 if there is none.
func ReadPid(dir string) int {
	b, err := os.ReadFile(filepath.Join(dir, PidFile))
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(string(bytes.TrimSpace(b)))
	if err != nil || pid <= 1 {
		return 0
	}
	return pid
}

// Children lists the child processes of all threads of pid, zombies included.
func Children(pid int) []int {
	dir := fmt.Sprintf("/proc/%d/task", pid)
	tasks, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	var pids []int
	for _, t := range tasks {
		b, err := os.ReadFile(filepath.Join(dir, t.Name(), "children"))
		if err != nil {
			continue
		}
		for _, f := range bytes.Fields(b) {
			if pid, err := strconv.Atoi(string(f)); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}
