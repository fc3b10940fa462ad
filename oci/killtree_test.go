package oci

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"berth/oci/keeper/runner"
	"berth/test/leak"

	"golang.org/x/sys/unix"
)

// Guards against children of forks that were under way when their process was
// told to stop: each is there after the first look at its parent's children.
func TestKillTreeOfAProcessThatForks(t *testing.T) {
	leak.NeedRoot(t)
	const mark = "4719"
	for i := range 40 {
		cmd := exec.Command("sh", "-c", "echo; while :; do sleep "+mark+" & done")
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		_, _ = out.Read(make([]byte, 1))
		for range i * 1000 { // somewhere else in the loop each time
			unix.Getppid()
		}
		runner.KillTree(cmd.Process.Pid, func(sig syscall.Signal) error { return cmd.Process.Signal(sig) })
		_ = cmd.Wait()
		await(t, "all are dead", func() bool { return len(withArgument(mark)) == 0 })
	}
}

// withArgument lists the processes that have it on their command line.
func withArgument(mark string) []int {
	var pids []int
	all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range all {
		if b, err := os.ReadFile(path); err == nil && bytes.Contains(b, []byte(mark)) {
			if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path))); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}
