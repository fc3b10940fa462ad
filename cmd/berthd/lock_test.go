package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestOneDaemonServesARunDir(t *testing.T) {
	dir := t.TempDir()
	first, err := lockRunDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if second, err := lockRunDir(dir); err == nil {
		second.Close()
		t.Error("a second daemon got the same run directory")
	} else if !strings.Contains(err.Error(), "another berthd serves "+dir) {
		t.Errorf("the error does not say what is wrong: %v", err)
	}
	first.Close()
	third, err := lockRunDir(dir)
	if err != nil {
		t.Fatalf("the lock outlived its holder: %v", err)
	}
	third.Close()
}

// A daemon that dies while it starts another program leaves its lock with that for
// a moment.
func TestLockIsWaitedFor(t *testing.T) {
	dir := t.TempDir()
	first, err := lockRunDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(lockTime/10, func() { first.Close() })
	second, err := lockRunDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	second.Close()
}

// Guards against a daemon that takes another run directory's pods for leaks.
func TestOneRunDirHasTheMachine(t *testing.T) {
	file, mine, other := filepath.Join(t.TempDir(), "berthd"), t.TempDir(), t.TempDir()
	pod := filepath.Join(podsDir(mine), "a")
	if err := os.MkdirAll(pod, 0o700); err != nil {
		t.Fatal(err)
	}
	first, err := lockMachine(file, mine)
	if err != nil {
		t.Fatal(err)
	}
	refused(t, file, other, "another berthd runs on this machine, with run_dir \""+mine)
	refused(t, file, mine, "stop it first")
	first.Close()
	refused(t, file, other, "there are 1 pods of a berthd with run_dir \""+mine)
	again, err := lockMachine(file, mine)
	if err != nil {
		t.Fatalf("its own daemon cannot come back: %v", err)
	}
	again.Close()
	if err := os.Remove(pod); err != nil {
		t.Fatal(err)
	}
	last, err := lockMachine(file, other)
	if err != nil {
		t.Fatalf("without pods: %v", err)
	}
	last.Close()
}

func refused(t *testing.T, file, runDir, want string) {
	t.Helper()
	f, err := lockMachine(file, runDir)
	if err == nil {
		f.Close()
	}
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("lock for %s: %v, want %q", runDir, err, want)
	}
}
