package cgroup

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// killRound is how long Kill waits before it looks again: what it had not killed
// yet may have frozen what it had.
const killRound = time.Second

// Kill sends SIGKILL to every process in p and below until none is left alive, also
// to those that are frozen. Nothing else is thawed. It waits for their ends; ctx
// bounds that, since a process in uninterruptible sleep may never end.
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
		round, cancel := context.WithTimeout(ctx, killRound)
		err = Wait(round, alive)
		cancel()
		closeAll(alive)
		if err != nil && ctx.Err() != nil {
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
	pids, _ := Procs(p)
	for _, pid := range pids {
		if process, err := OpenProcess(pid); err == nil {
			process.Kill()
			process.Close()
		}
	}
	for _, process := range alive {
		process.Kill()
	}
	for _, d := range dirs(p) {
		_ = write(filepath.Join(d, "freezer.state"), "THAWED")
	}
	FreeKilled(pids)
}

// FreeKilled lets processes die that were sent SIGKILL and are frozen all the same,
// by a cgroup below or above those that the caller may thaw: on v1, the signal waits
// for the thaw. They are moved out of the frozen cgroup. A thaw would let others run
// that somebody wanted frozen, a fork bomb perhaps.
func FreeKilled(pids []int) {
	for _, h := range hierarchies() {
		if !slices.Contains(h.controllers, "freezer") {
			continue
		}
		for _, pid := range pids {
			if h.frozen(pid) {
				_ = write(filepath.Join(h.mount, "cgroup.procs"), strconv.Itoa(pid))
			}
		}
	}
}

// frozen asks the freezer's hierarchy for a process.
func (h hierarchy) frozen(pid int) bool {
	membership, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	for line := range strings.Lines(string(membership)) { // HIERARCHY:CONTROLLERS:PATH
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(f) != 3 || !slices.Contains(strings.Split(f[1], ","), "freezer") {
			continue
		}
		state, err := os.ReadFile(filepath.Join(h.mount, f[2], "freezer.state"))
		return err == nil && string(state) != "THAWED\n"
	}
	return false
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
