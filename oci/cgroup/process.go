package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Process is one that may be another's child, held by a pidfd: its pid may be
// reused, it is not mistaken.
type Process struct {
	Pid  int
	file *os.File
	raw  syscall.RawConn
}

// OpenProcess opens a process; a zombie is one.
func OpenProcess(pid int) (*Process, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	file := os.NewFile(uintptr(fd), "pidfd")
	raw, err := file.SyscallConn()
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	return &Process{pid, file, raw}, nil
}

// Close lets go of the process.
func (p *Process) Close() { p.file.Close() }

// Kill sends SIGKILL; a process that has ended does not mind.
func (p *Process) Kill() {
	_ = p.raw.Control(func(fd uintptr) { _ = unix.PidfdSendSignal(int(fd), unix.SIGKILL, nil, 0) })
}

// Ended reports that the process is dead; a zombie is.
func (p *Process) Ended() (dead bool) {
	_ = p.raw.Control(func(fd uintptr) { dead = ended(fd) })
	return dead
}

// Wait blocks until every one of the processes has ended, or ctx has.
func Wait(ctx context.Context, processes []*Process) error {
	for _, p := range processes {
		if err := p.wait(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (p *Process) wait(ctx context.Context) error {
	_ = p.file.SetReadDeadline(time.Time{}) // another Wait may have been cut short
	stop := context.AfterFunc(ctx, func() { _ = p.file.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	err := p.raw.Read(ended)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("a killed process does not end: %w", ctx.Err())
	}
	return err
}

// ended: a pidfd is readable when its process is dead.
func ended(pidfd uintptr) bool {
	poll := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	n, err := unix.Poll(poll, 0)
	return err == nil && n > 0
}
