package runner

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"berth/oci/cgroup"
	"berth/oci/keeper"

	"golang.org/x/sys/unix"
)

// strays lists the runtime processes that work for the process in dir: those
// that were told to write its pid file. A container's own processes cannot be
// meant unless they take that very path as an argument.
func strays(dir string) []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	pidFile := []byte(filepath.Join(dir, keeper.PidFile))
	var fds []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		// A zombie's command line is empty: it counts as ended.
		b, err := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		if err != nil || !bytes.Contains(b, pidFile) {
			continue
		}
		if fd, err := unix.PidfdOpen(pid, 0); err == nil {
			fds = append(fds, fd)
		}
	}
	return fds
}

// waitForStrays waits for runtime commands of a dead runner; those that hang are
// killed.
func (r *runner) waitForStrays(dir string, timeout time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	for {
		fds := strays(dir)
		if len(fds) == 0 {
			return
		}
		err := cgroup.Wait(ctx, fds)
		closeFDs(fds)
		if err != nil {
			r.logger.Printf("the runtime of %s has not ended for %v: it is killed", dir, timeout)
			r.killStrays(dir)
			return
		}
	}
}

// killStrays kills runtime processes until none is left.
func (r *runner) killStrays(dir string) {
	ctx, cancel := context.WithTimeout(context.Background(), killTimeout)
	defer cancel()
	for {
		fds := strays(dir)
		if len(fds) == 0 {
			return
		}
		for _, fd := range fds {
			_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
		}
		err := cgroup.Wait(ctx, fds)
		closeFDs(fds)
		if err != nil {
			r.logger.Printf("kill runtime of %s: %v", dir, err)
			return
		}
	}
}

func closeFDs(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}
