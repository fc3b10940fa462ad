package cgroup

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// Kill sends SIGKILL to every process in p and below until none is left alive.
// It waits for their ends; ctx bounds that, since a process in uninterruptible
// sleep may never end.
func Kill(ctx context.Context, p string) error {
	var dead []int
	for {
		pids, err := Procs(p)
		if err != nil {
			return fmt.Errorf("kill cgroup %s: %w", p, err)
		}
		// One that was listed and is dead now may have forked in between: only
		// those that were dead before the list say that nothing lives.
		if subset(pids, dead) {
			return nil
		}
		alive := open(pids)
		dead = nil
		if len(alive) == 0 {
			dead = pids
			continue
		}
		killOnce(p, alive)
		err = Wait(ctx, alive)
		closeAll(alive)
		if err != nil {
			return fmt.Errorf("kill cgroup %s: %w", p, err)
		}
	}
}

// subset reports that pids are all among known.
func subset(pids, known []int) bool {
	return !slices.ContainsFunc(pids, func(pid int) bool { return !slices.Contains(known, pid) })
}

// killOnce reaches also those that fork meanwhile, where the kernel can: by
// cgroup.kill on v2, and while frozen on v1.
func killOnce(p string, alive []*Process) {
	for _, d := range dirs(p) {
		_ = write(filepath.Join(d, "cgroup.kill"), "1")
		_ = write(filepath.Join(d, "freezer.state"), "FROZEN")
	}
	if pids, err := Procs(p); err == nil {
		for _, pid := range pids {
			if process, err := OpenProcess(pid); err == nil {
				process.Kill()
				process.Close()
			}
		}
	}
	for _, process := range alive {
		process.Kill()
	}
	for _, d := range dirs(p) {
		_ = write(filepath.Join(d, "freezer.state"), "THAWED")
	}
}

// write does not create what the hierarchy does not have.
func write(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString(text)
	return err
}

// open opens those that are alive; a zombie is not.
func open(pids []int) []*Process {
	var alive []*Process
	for _, pid := range pids {
		p, err := OpenProcess(pid)
		if err != nil {
			continue
		}
		if p.Ended() {
			p.Close()
			continue
		}
		alive = append(alive, p)
	}
	return alive
}

func closeAll(processes []*Process) {
	for _, p := range processes {
		p.Close()
	}
}
