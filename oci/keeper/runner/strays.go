package runner

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"berth/oci/cgroup"
	"berth/oci/keeper"
)

// strays lists the runtime processes that work for the process in dir: those that
// were told to write its pid file, whatever runtime it is: we always tell. A
// container's own processes cannot be meant unless they take that very path as an
// argument. The log's path would not do: runsc passes that on to processes which
// live as long as the container.
func strays(dir string) []*cgroup.Process {
	pidFile := []byte(filepath.Join(dir, keeper.PidFile))
	var found []*cgroup.Process
	for _, pid := range allPids() {
		if !hasArgument(pid, pidFile) {
			continue
		}
		p, err := cgroup.OpenProcess(pid)
		if err != nil {
			continue
		}
		if !hasArgument(pid, pidFile) { // the pid was another's before it was opened
			p.Close()
			continue
		}
		found = append(found, p)
	}
	return found
}

// allPids lists the processes of the node.
func allPids() []int {
	entries, _ := os.ReadDir("/proc")
	var pids []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// hasArgument looks for text on the command line of a process. That of a zombie is
// empty: it counts as ended.
func hasArgument(pid int, text []byte) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return err == nil && bytes.Contains(b, text)
}

// waitForStrays waits for runtime commands of a dead runner; those that hang are
// killed, and it returns true.
func (r *runner) waitForStrays(dir string, timeout time.Duration) (killed bool) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	for {
		alive := strays(dir)
		if len(alive) == 0 {
			return false
		}
		err := cgroup.Wait(ctx, alive)
		closeAll(alive)
		if err != nil {
			r.logger.Printf("the runtime of %s has not ended for %v: it is killed", dir, timeout)
			r.killStrays(dir)
			return true
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
		var pids []int
		for _, p := range alive {
			p.Kill()
			pids = append(pids, p.Pid)
		}
		cgroup.FreeKilled(pids)
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
