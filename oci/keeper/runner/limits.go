package runner

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// limits is the number of rlimits, which are numbered from 0 (RLIM_NLIMITS).
	limits = 16
	// stackSize is the soft limit of a stack that programs are used to, in bytes.
	stackSize = 8 << 20
)

// raiseLimits gives this process, and so the runtimes that it starts, the highest
// limits that it may have. A runtime that sets the limits of a container from
// within a user namespace can only lower them, and low soft limits of whoever
// started berthd would stop the runtimes themselves.
func raiseLimits() {
	for resource := range limits {
		hard := RaiseLimit(resource, unix.RLIM_INFINITY)
		soft := hard
		switch resource {
		case unix.RLIMIT_NOFILE:
			continue // the soft limit is Go's business, which keeps its own from children
		case unix.RLIMIT_CORE:
			soft = 0
		case unix.RLIMIT_STACK:
			soft = min(stackSize, hard)
		}
		_ = setLimit(resource, unix.Rlimit{Cur: soft, Max: hard})
	}
}

// RaiseLimit raises the hard limit of this process to want, if it is lower, and
// returns the highest up to want that a process started from here can have.
func RaiseLimit(resource int, want uint64) uint64 {
	if resource == unix.RLIMIT_NOFILE {
		if most, err := KernelSetting("fs/nr_open"); err == nil {
			want = min(want, most)
		}
	}
	var own unix.Rlimit
	if unix.Getrlimit(resource, &own) != nil || own.Max >= want {
		return want
	}
	if setLimit(resource, unix.Rlimit{Cur: own.Cur, Max: want}) != nil {
		return own.Max // without CAP_SYS_RESOURCE
	}
	return want
}

// setLimit bypasses unix.Setrlimit, after which children would start with the high
// soft limit of open files that Go gives itself: programs that close all the
// descriptors they could have take seconds then.
func setLimit(resource int, limit unix.Rlimit) error {
	_, _, errno := unix.RawSyscall6(unix.SYS_PRLIMIT64, 0, uintptr(resource), uintptr(unsafe.Pointer(&limit)), 0, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// KernelSetting reads a number below /proc/sys.
func KernelSetting(name string) (uint64, error) {
	b, err := os.ReadFile(filepath.Join("/proc/sys", name))
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(string(bytes.TrimSpace(b)), 10, 64)
}
