package cgroup

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// freeze freezes the cgroup at p, and waits until it is. It is thawed at the test's
// end.
func freeze(t *testing.T, p string) {
	t.Helper()
	dir, v2 := nesting(p)
	file, frozen, thawed := filepath.Join(dir, "freezer.state"), "FROZEN", "THAWED"
	if v2 {
		file, frozen, thawed = filepath.Join(dir, "cgroup.freeze"), "1", "0"
	}
	t.Cleanup(func() { _ = write(file, thawed) })
	if err := write(file, frozen); err != nil {
		t.Fatal(err)
	}
	await(t, func() bool { return isFrozen(t, dir) })
}

func isFrozen(t *testing.T, dir string) bool {
	t.Helper()
	return stateOf(t, filepath.Join(dir, "freezer.state")) == "FROZEN" ||
		strings.Contains(stateOf(t, filepath.Join(dir, "cgroup.events")), "frozen 1")
}

func stateOf(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// What is frozen, by itself, by a cgroup below or above, is killed, and nothing
// else is thawed.
func TestKillOfTheFrozen(t *testing.T) {
	for name, frozen := range map[string]string{"itself": "/pod/a", "below": "/pod/a/below", "above": "/pod", "far above": ""} {
		t.Run(name, func(t *testing.T) {
			p := testGroup(t)
			member(t, p+"/pod/a", "exec sleep 1000")
			member(t, p+"/pod/a/below", "while :; do :; done")
			other := member(t, p+"/pod/b", "exec sleep 1000")
			freeze(t, p+frozen)
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			if err := Kill(ctx, p+"/pod/a"); err != nil {
				t.Fatal(err)
			}
			if err := Remove(p + "/pod/a"); err != nil {
				t.Error(err)
			}
			if dir, _ := nesting(p + frozen); len(frozen) < len("/pod/a") && !isFrozen(t, dir) {
				t.Errorf("%s was thawed", dir)
			}
			if alive := open([]int{other.Process.Pid}); len(alive) != 1 {
				t.Error("another container's process was killed")
			} else {
				closeAll(alive)
			}
		})
	}
}
