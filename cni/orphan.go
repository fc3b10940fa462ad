package cni

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// killOrphans kills the plugins that a killed berthd left running for the pod,
// and what they have started, so that none of them attaches or detaches
// something during or after the DEL that follows. The pod's lock is held: this
// process runs no plugin for it.
//
// Plugins are known by their environment, which the programs that they run
// inherit. A process that lies about its own only harms itself and the session
// that it leads.
func (n *Network) killOrphans(ctx context.Context, id string) error {
	ctx, cancel := n.withTimeout(ctx, n.Timeout)
	defer cancel()
	for {
		orphans, err := findOrphans(id)
		if len(orphans) == 0 || err != nil {
			return err
		}
		// Again until none is found: one may have started another meanwhile.
		for _, pid := range orphans {
			if err := killOrphan(ctx, pid, id); err != nil {
				return fmt.Errorf("kill orphaned plugin %d: %w", pid, err)
			}
		}
	}
}

func findOrphans(id string) ([]int, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	var found []int
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			return nil, err
		}
		if isPluginOf(pid, id) {
			found = append(found, pid)
		}
	}
	return found, nil
}

func isPluginOf(pid int, id string) bool {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil {
		return false // it has ended
	}
	vars := strings.Split(string(data), "\x00")
	return slices.Contains(vars, "CNI_CONTAINERID="+id) && slices.Contains(vars, "CNI_IFNAME="+IfName)
}

// killOrphan kills the process, with its group if it is a plugin that berthd
// started as the leader of a session, and waits for its end.
// ctx has a deadline.
func killOrphan(ctx context.Context, pid int, id string) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if !isPluginOf(pid, id) {
		return nil // the pid was another process's before it was opened
	}
	if session, err := unix.Getsid(pid); err == nil && session == pid {
		unix.Kill(-pid, unix.SIGKILL) // all at once, so that none is missed while it forks
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	return awaitPidfd(ctx, fd)
}

// awaitPidfd waits for the end of a killed process, at most to ctx's deadline.
func awaitPidfd(ctx context.Context, fd int) error {
	deadline, _ := ctx.Deadline()
	for {
		left := max(0, time.Until(deadline).Milliseconds())
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(left))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return err
		case n == 0:
			return context.DeadlineExceeded
		default:
			return nil
		}
	}
}
