package runner

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"berth/oci/cgroup"
	"berth/oci/keeper"

	"golang.org/x/sys/unix"
)

// stopTimeout bounds how long KillTree looks at processes that do not stop.
const stopTimeout = time.Second

// KillTree kills a process, its descendants and the other processes of its session:
// it stops each before it looks for children, so that none can run away meanwhile.
// signal reaches the root by its pidfd. A process whose parent has ended is nobody's
// descendant any more: in a session of its own, it is not found.
func KillTree(root int, signal func(syscall.Signal) error) {
	if signal(syscall.SIGSTOP) != nil {
		return
	}
	t := tree{pids: []int{root}, fds: map[int]int{root: none}, session: sessionOf(root)}
	deadline := time.Now().Add(stopTimeout)
	// A fork under way when its process is told to stop is completed first: only
	// the children of a process that has stopped are all that it will have.
	for stopped := false; !stopped && time.Now().Before(deadline); {
		stopped = !slices.ContainsFunc(t.pids, runs)
		stopped = !t.grow() && stopped
		_, _, _ = unix.Syscall(unix.SYS_SCHED_YIELD, 0, 0, 0) // to those that are to stop
	}
	_ = signal(syscall.SIGKILL)
	for _, fd := range t.fds {
		if fd == none {
			continue
		}
		_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
		unix.Close(fd)
	}
	cgroup.FreeKilled(t.pids)
}

// tree is a process that was told to stop, and those that belong to it as far as
// they are known.
type tree struct {
	pids    []int
	fds     map[int]int // pidfds by pid; none for the first
	session int         // 0: it is not the tree's alone
}

// none is the pidfd of a process that is reached otherwise.
const none = -1

// grow adds and stops further processes, if there are any.
func (t *tree) grow() bool {
	before := len(t.pids)
	for i := 0; i < len(t.pids); i++ {
		for _, pid := range keeper.Children(t.pids[i]) {
			t.add(pid)
		}
	}
	if t.session != 0 {
		for _, pid := range allPids() {
			if _, known := t.fds[pid]; !known && sessionOf(pid) == t.session {
				t.add(pid)
			}
		}
	}
	return len(t.pids) > before
}

func (t *tree) add(pid int) {
	if _, known := t.fds[pid]; known {
		return
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return
	}
	_ = unix.PidfdSendSignal(fd, unix.SIGSTOP, nil, 0)
	t.fds[pid] = fd
	t.pids = append(t.pids, pid)
}

// sessionOf is 0 for our own session and for one that began in a pid namespace
// which we do not see.
func sessionOf(pid int) int {
	session, err := unix.Getsid(pid)
	if own, _ := unix.Getsid(0); err != nil || session == own {
		return 0
	}
	return session
}

// runs reports that a thread of the process is on a processor, or waits for one.
func runs(pid int) bool {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	return slices.ContainsFunc(tasks, func(path string) bool {
		stat, err := os.ReadFile(path)
		_, state, found := bytes.Cut(stat[bytes.LastIndexByte(stat, ')')+1:], []byte(" "))
		return err == nil && found && bytes.HasPrefix(state, []byte("R"))
	})
}
