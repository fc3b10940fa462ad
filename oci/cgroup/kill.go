package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Kill sends SIGKILL to every process in p and below until none is left alive.
// It waits for their ends; ctx bounds that, since a process in uninterruptible
// sleep may never end.
func Kill(ctx context.Context, p string) error {
	var ended []int
	for {
		pids, err := Procs(p)
		if err != nil {
			return fmt.Errorf("kill cgroup %s: %w", p, err)
		}
		// One that was listed and is dead now may have forked in between: only
		// those that were dead before the list say that nothing lives.
		if subset(pids, ended) {
			return nil
		}
		alive := open(pids)
		ended = nil
		if len(alive) == 0 {
			ended = pids
			continue
		}
		killOnce(p, alive)
		err = Wait(ctx, alive)
		closeAll(alive)
		if err != nil {
			return fmt.Errorf("kill cgroup %s: %w", p, err)
		}
	}
}

// subset reports that pids are all among known.
func subset(pids, known []int) bool {
	return !slices.ContainsFunc(pids, func(pid int) bool { return !slices.Contains(known, pid) })
}

// killOnce reaches also those that fork meanwhile, where the kernel can: by
// cgroup.kill on v2, and while frozen on v1.
func killOnce(p string, pidfds []int) {
	for _, d := range dirs(p) {
		_ = write(filepath.Join(d, "cgroup.kill"), "1")
		_ = write(filepath.Join(d, "freezer.state"), "FROZEN")
	}
	if pids, err := Procs(p); err == nil {
		for _, pid := range pids {
			if fd, err := unix.PidfdOpen(pid, 0); err == nil {
				_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
				unix.Close(fd)
			}
		}
	}
	for _, fd := range pidfds {
		_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
	}
	for _, d := range dirs(p) {
		_ = write(filepath.Join(d, "freezer.state"), "THAWED")
	}
}

// write does not create what the hierarchy does not have.
func write(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString(text)
	return err
}

// open returns pidfds of those that are alive; a zombie is not.
func open(pids []int) []int {
	var fds []int
	for _, pid := range pids {
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue
		}
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if n, err := unix.Poll(poll, 0); err != nil || n > 0 {
			unix.Close(fd)
			continue
		}
		fds = append(fds, fd)
	}
	return fds
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// waitSlice bounds one poll, after which ctx is looked at.
const waitSlice = 100 * time.Millisecond

// Wait blocks until every process behind pidfds has ended, or ctx has.
func Wait(ctx context.Context, pidfds []int) error {
	for _, fd := range pidfds {
		for {
			poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
			n, err := unix.Poll(poll, int(waitSlice.Milliseconds()))
			if err != nil && !errors.Is(err, unix.EINTR) {
				return err
			}
			if n > 0 {
				break
			}
			if ctx.Err() != nil {
				return fmt.Errorf("a killed process does not end: %w", ctx.Err())
			}
		}
	}
	return nil
}
