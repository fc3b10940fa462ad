package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"berth/oci"
)

// machineFile is locked by the machine's one berthd and names its run directory.
const machineFile = "/run/berthd"

// podsDir is where the pods of a run directory have their records.
func podsDir(runDir string) string { return filepath.Join(runDir, "pods") }

// takeRunDir makes runDir and has it, and the machine, for this daemon alone until
// unlock is called.
func takeRunDir(runDir string) (unlock func(), err error) {
	machine, err := lockMachine(machineFile, runDir)
	if err != nil {
		return nil, err
	}
	if err := oci.MakeRunDir(runDir); err != nil {
		machine.Close()
		return nil, err
	}
	dir, err := lockRunDir(runDir)
	if err != nil {
		machine.Close()
		return nil, err
	}
	return func() {
		dir.Close()
		machine.Close()
	}, nil
}

// lockMachine takes the lock at path for a daemon that serves runDir.
//
// The names of cgroups and network namespaces do not tell run directories apart:
// a daemon on another one would take its pods for leaks and destroy them. So it
// is refused as long as there are pods, also while their own daemon is down.
func lockMachine(path, runDir string) (*os.File, error) {
	f, err := lock(path)
	last, _ := os.ReadFile(path)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return nil, fmt.Errorf("another berthd runs on this machine, with run_dir %q: stop it first", last)
	}
	if err != nil {
		return nil, fmt.Errorf("lock the machine: %w", err)
	}
	if len(last) > 0 && string(last) != runDir {
		if pods, _ := os.ReadDir(podsDir(string(last))); len(pods) > 0 {
			f.Close()
			return nil, fmt.Errorf("there are %d pods of a berthd with run_dir %q: set run_dir to that, or remove them with it first", len(pods), last)
		}
	}
	if err := os.WriteFile(path, []byte(runDir), 0o600); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock the machine: %w", err)
	}
	return f, nil
}

// lockRunDir takes the lock that one daemon holds on dir: what locks the machine
// may be another file in a container.
func lockRunDir(dir string) (*os.File, error) {
	f, err := lock(filepath.Join(dir, "lock"))
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return nil, fmt.Errorf("another berthd serves %s: stop it first", dir)
	}
	if err != nil {
		return nil, fmt.Errorf("lock run directory %s: %w", dir, err)
	}
	return f, nil
}

// lock makes a file and locks it until it is closed or the process ends;
// syscall.EWOULDBLOCK if another has. image.Store waits for its own lock in the
// same way: there is no room below both that is about locks.
func lock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	for deadline := time.Now().Add(lockTime); errors.Is(err, syscall.EWOULDBLOCK) && time.Now().Before(deadline); {
		<-time.After(time.Millisecond)
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// lockTime is how long a lock may outlive its process: one that it was just
// forking has the lock as well, until it executes its program.
const lockTime = time.Second
