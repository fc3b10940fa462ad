package cgroup

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// limitMemory limits the memory of p in the hierarchy that can.
func limitMemory(t *testing.T, p, bytes string) {
	t.Helper()
	limited := false
	for _, h := range hierarchies() {
		delegate(h, p)
		for _, name := range []string{"memory.memsw.limit_in_bytes", "memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.swap.max", "memory.max"} {
			path := filepath.Join(h.mount, p, name)
			if _, err := os.Stat(path); err != nil {
				continue
			}
			value := bytes
			if name == "memory.swap.max" {
				value = "0"
			}
			_ = write(path, value) // memsw before memory fails when it shrinks, after it when it grows
		}
		for _, name := range []string{"memory.limit_in_bytes", "memory.max"} {
			text, err := os.ReadFile(filepath.Join(h.mount, p, name))
			limited = limited || err == nil && string(text) == bytes+"\n"
		}
	}
	if !limited {
		t.Fatalf("the memory of %s is not limited to %s", p, bytes)
	}
}

// delegate gives p the memory controller, where v2 has it and has to be told.
func delegate(h hierarchy, p string) {
	dir := h.mount
	for _, name := range strings.Split(strings.Trim(p, "/"), "/") {
		if h.v2 {
			_ = write(filepath.Join(dir, "cgroup.subtree_control"), "+memory")
		}
		dir = filepath.Join(dir, name)
	}
}

// hog takes more memory than it has, and says with which code it ended.
const hog = `(x=a; while :; do x=$x$x; done)`

func TestOOMKills(t *testing.T) {
	p := testGroup(t)
	cmd := member(t, p, `echo quiet; `+hog+`; exit 3`)
	limitMemory(t, p, "8388608")
	if err := cmd.Wait(); err == nil || cmd.ProcessState.ExitCode() != 3 {
		t.Fatalf("ended with %v, want code 3 of the parent of who was killed", err)
	}
	if n := OOMKills(p); n != 1 {
		t.Errorf("%d kills, want 1", n)
	}
}

// On v1 the cgroups below count for themselves.
func TestOOMKillsBelow(t *testing.T) {
	p := testGroup(t)
	cmd := member(t, p+"/below", hog)
	limitMemory(t, p+"/below", "8388608")
	if err := cmd.Wait(); err == nil {
		t.Fatal("it was not killed")
	}
	if n := OOMKills(p); n != 1 {
		t.Errorf("%d kills, want 1", n)
	}
}

func TestOOMKillsOfNothing(t *testing.T) {
	p := testGroup(t)
	cmd := member(t, p, "kill -9 $$")
	if err := cmd.Wait(); err == nil {
		t.Fatal("it was not killed")
	}
	for _, path := range []string{p, "/berth-cgroup-test-never", "/", "", "/../x"} {
		if n := OOMKills(path); n != 0 {
			t.Errorf("%q: %d kills", path, n)
		}
	}
}
