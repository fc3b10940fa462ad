package runner

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

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
		KillTree(cmd.Process.Pid, func(sig syscall.Signal) error { return cmd.Process.Signal(sig) })
		_ = cmd.Wait()
		awaitDead(t, mark)
	}
}

// Guards against processes that only their session shows to belong together.
func TestKillTreeTakesTheSession(t *testing.T) {
	leak.NeedRoot(t)
	const mark = "4720"
	cmd := exec.Command("sh", "-c", "(sleep "+mark+" & exec sleep "+mark+" &); echo; exec sleep "+mark)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_, _ = out.Read(make([]byte, 1))
	KillTree(cmd.Process.Pid, func(sig syscall.Signal) error { return cmd.Process.Signal(sig) })
	_ = cmd.Wait()
	awaitDead(t, mark)
}

// awaitDead waits until no process has mark on its command line.
func awaitDead(t *testing.T, mark string) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	again := time.NewTicker(2 * time.Millisecond)
	defer again.Stop()
	for alive(mark) {
		select {
		case <-again.C:
		case <-deadline:
			t.Fatal("some are still alive")
		}
	}
}

// alive says whether a process has mark on its command line; that of a zombie is
// empty.
func alive(mark string) bool {
	all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	return slices.ContainsFunc(all, func(path string) bool {
		b, err := os.ReadFile(path)
		return err == nil && bytes.Contains(b, []byte(mark))
	})
}
