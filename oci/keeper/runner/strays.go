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
)

// strays lists the runtime processes that work for the process in dir: those
// that were told to write its pid file. A container's own processes cannot be
// meant unless they take that very path as an argument.
func strays(dir string) []*cgroup.Process {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	pidFile := []byte(filepath.Join(dir, keeper.PidFile))
	var found []*cgroup.Process
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
		if p, err := cgroup.OpenProcess(pid); err == nil {
			found = append(found, p)
		}
	}
	return found
}

// waitForStrays waits for runtime commands of a dead runner; those that hang are
// killed.
func (r *runner) waitForStrays(dir string, timeout time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	for {
		alive := strays(dir)
		if len(alive) == 0 {
			return
		}
		err := cgroup.Wait(ctx, alive)
		closeAll(alive)
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
		alive := strays(dir)
		if len(alive) == 0 {
			return
		}
		for _, p := range alive {
			p.Kill()
		}
		err := cgroup.Wait(ctx, alive)
		closeAll(alive)
		if err != nil {
			r.logger.Printf("kill runtime of %s: %v", dir, err)
			return
		}
	}
}

func closeAll(processes []*cgroup.Process) {
	for _, p := range processes {
		p.Close()
	}
}
