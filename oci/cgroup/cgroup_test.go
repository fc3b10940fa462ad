package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"berth/test/leak"
)

// threadsName is the test binary's as a program with threads. It ends with its
// standard input.
const threadsName = "threads"

func TestMain(m *testing.M) {
	if os.Args[0] == threadsName {
		_, _ = io.Copy(io.Discard, os.Stdin)
		return
	}
	leak.MainUnderReaper(m)
}

func TestValid(t *testing.T) {
	for path, want := range map[string]bool{
		"/berth": true, "/berth/a": true, "/kubepods/burstable/pod1/c": true,
		"": false, "/": false, "berth": false, "/berth/": false, "//berth": false,
		"/berth/../other": false, "/..": false, "/.": false, "/berth//a": false,
	} {
		if got := Valid(path); got != want {
			t.Errorf("Valid(%q) = %v", path, got)
		}
	}
	for _, path := range []string{"", "/", "/berth/.."} {
		for name, err := range map[string]error{
			"Kill": Kill(t.Context(), path), "Remove": Remove(path), "Make": Make(path, os.Getpid()),
		} {
			if !errors.Is(err, errors.ErrUnsupported) {
				t.Errorf("%s(%q): %v, want a refusal", name, path, err)
			}
		}
	}
}

// testGroup is a cgroup of this test alone.
func testGroup(t *testing.T) string {
	t.Helper()
	leak.NeedRoot(t)
	p := fmt.Sprintf("/berth-cgroup-test-%d", time.Now().UnixNano())
	t.Cleanup(func() {
		if err := Kill(context.Background(), p); err != nil {
			t.Error(err)
		}
		if err := Remove(p); err != nil {
			t.Error(err)
		}
	})
	return p
}

// member starts a shell that waits for its turn, puts it into the cgroup and
// lets it go on with script.
func member(t *testing.T, p, script string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sh", "-c", "read x; "+script)
	enroll(t, p, cmd)
	return cmd
}

// enroll starts a command that reads a line first, and lets it read that when it
// is in the cgroup.
func enroll(t *testing.T, p string, cmd *exec.Cmd) {
	t.Helper()
	turn, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	if err := Make(p, cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	if _, err := turn.Write([]byte("\n")); err != nil {
		t.Fatal(err)
	}
}

func TestMakeEntersEveryHierarchy(t *testing.T) {
	p := testGroup(t)
	cmd := member(t, p+"/below", "exec sleep 1000")
	for _, h := range hierarchies() {
		b, err := os.ReadFile(filepath.Join(h.mount, p, "below", "cgroup.procs"))
		if err != nil || string(b) != fmt.Sprintln(cmd.Process.Pid) {
			t.Errorf("%s: processes %q, %v, want %d", h.mount, b, err, cmd.Process.Pid)
		}
	}
	if pids, err := Procs(p); err != nil || !slices.Equal(pids, []int{cmd.Process.Pid}) {
		t.Errorf("processes %v, %v, want %d", pids, err, cmd.Process.Pid)
	}
	if names := Children(p); !slices.Equal(names, []string{"below"}) {
		t.Errorf("children %v", names)
	}
	if err := Remove(p); !errors.Is(err, syscall.EBUSY) {
		t.Errorf("remove with a process in it: %v, want EBUSY", err)
	}
}

// A process may be in the cgroup of one hierarchy alone.
func TestKillFindsAProcessInAnyHierarchy(t *testing.T) {
	for _, h := range hierarchies() {
		p := testGroup(t)
		cmd := exec.Command("sleep", "1000")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(filepath.Join(h.mount, p), 0o755); err != nil {
			t.Fatal(err)
		}
		if slices.Contains(h.controllers, "cpuset") {
			if err := inheritCpuset(h.mount, p); err != nil {
				t.Fatal(err)
			}
		}
		enter(t, filepath.Join(h.mount, p), cmd.Process.Pid)
		alive := open([]int{cmd.Process.Pid})
		if err := Kill(t.Context(), p); err != nil {
			t.Error(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		if err := Wait(ctx, alive); err != nil {
			t.Errorf("%s: %v", h.mount, err)
			_ = cmd.Process.Kill()
		}
		cancel()
		closeAll(alive)
		_ = cmd.Wait()
	}
}

func enter(t *testing.T, dir string, pid int) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0); err != nil {
		t.Fatal(err)
	}
}

// What forks all the time is killed whole, also when it was stopped or frozen.
func TestKill(t *testing.T) {
	for name, script := range map[string]string{
		"one":        "exec sleep 1000",
		"tree":       "sleep 1000 & (sleep 1000 & sleep 1000) & setsid sleep 1000 & wait",
		"fork storm": "while :; do true & done",
		"stopped":    "sleep 1000 & kill -STOP $$",
		"stubborn":   "trap '' TERM INT HUP; while :; do wait; done",
	} {
		t.Run(name, func(t *testing.T) {
			killAll(t, script)
		})
	}
}

// Guards against taking a process that forked and ended between two looks for
// the last one: the moment is rare.
func TestKillOfOneThatMovesOnOften(t *testing.T) {
	for range 200 {
		killAll(t, "on() { on & exit; }; on")
	}
}

func killAll(t *testing.T, script string) {
	t.Helper()
	p := testGroup(t)
	member(t, p, script)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := Kill(ctx, p); err != nil {
		t.Fatal(err)
	}
	pids, err := Procs(p)
	if err != nil {
		t.Fatal(err)
	}
	if alive := open(pids); len(alive) > 0 {
		closeAll(alive)
		t.Errorf("%d processes live", len(alive))
	}
}

func TestKillAndRemoveNothing(t *testing.T) {
	leak.NeedRoot(t)
	const p = "/berth-cgroup-test-never"
	if err := errors.Join(Kill(t.Context(), p), Remove(p)); err != nil {
		t.Error(err)
	}
	if pids, err := Procs(p); len(pids) > 0 || err != nil {
		t.Errorf("processes %v, %v", pids, err)
	}
	if names := Children(p); len(names) > 0 {
		t.Errorf("children %v", names)
	}
}

func TestRemoveTakesWhatIsBelow(t *testing.T) {
	p := testGroup(t)
	for _, h := range hierarchies() {
		for _, below := range []string{"a/b/c", "a/d", "e"} {
			if err := os.MkdirAll(filepath.Join(h.mount, p, below), 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := Remove(p); err != nil {
		t.Fatal(err)
	}
	if left := dirs(p); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// Waiting ends with the context: a process that does not end, as one in
// uninterruptible sleep does not, is reported.
func TestWaitEndsWithItsContext(t *testing.T) {
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pidfds := open([]int{cmd.Process.Pid})
	defer closeAll(pidfds)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Wait(ctx, pidfds); !errors.Is(err, context.Canceled) {
		t.Errorf("wait: %v, want context.Canceled", err)
	}
	_ = cmd.Process.Kill()
	if err := Wait(t.Context(), pidfds); err != nil {
		t.Error(err)
	}
	if alive := open([]int{cmd.Process.Pid}); len(alive) > 0 {
		closeAll(alive)
		t.Error("a zombie counts as alive")
	}
	_ = cmd.Wait()
}

func TestHolds(t *testing.T) {
	p := testGroup(t)
	pid := member(t, p+"/below", "exec sleep 1000").Process.Pid
	for path, want := range map[string]bool{p: true, p + "/below": true, p + "/bel": false, p + "/below/deeper": false, "/": false} {
		if got, err := Holds(path, pid); err != nil || got != want {
			t.Errorf("%s: %v, %v, want %v", path, got, err, want)
		}
	}
	if _, err := Holds(p, 1<<30); err == nil {
		t.Error("a process that there is not is in it")
	}
}
