package leak

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// A process as /proc/PID/stat shows it.
type process struct {
	pid, parent int
	state       string // "Z" is a zombie
	started     string // in clock ticks since boot: tells users of one pid apart
}

func (p process) key() string { return fmt.Sprintf("process %d %s", p.pid, p.started) }

func (p process) String() string {
	proc := fmt.Sprintf("/proc/%d/", p.pid)
	if p.state == "Z" {
		comm, _ := os.ReadFile(proc + "comm")
		return fmt.Sprintf("process %d, not waited for: %s", p.pid, bytes.TrimSpace(comm))
	}
	cmdline, _ := os.ReadFile(proc + "cmdline")
	args := bytes.ReplaceAll(bytes.TrimRight(cmdline, "\x00"), []byte{0}, []byte{' '})
	return fmt.Sprintf("process %d: %s", p.pid, args)
}

// descendants are the children of pid and theirs, zombies included.
func descendants(pid int) []process {
	children := map[int][]process{}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		if p, ok := readStat(path); ok {
			children[p.parent] = append(children[p.parent], p)
		}
	}
	found := children[pid]
	for i := 0; i < len(found); i++ {
		found = append(found, children[found[i].pid]...)
	}
	return found
}

// readStat is not ok for a process that has gone.
func readStat(path string) (process, bool) {
	data, err := os.ReadFile(path)
	if err != nil {
		return process{}, false
	}
	// proc(5): pid (comm) state ppid …, where comm may hold anything and field
	// 22 is the start time.
	stat := string(data)
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(fields) < 20 {
		return process{}, false
	}
	p := process{state: fields[0], started: fields[19]}
	p.pid, _ = strconv.Atoi(filepath.Base(filepath.Dir(path)))
	p.parent, _ = strconv.Atoi(fields[1])
	return p, true
}

// killSince kills the descendants that before has not. Without it a left
// process would hold go test's output open.
func killSince(before snapshot) {
	for _, p := range descendants(os.Getpid()) {
		if _, was := before[p.key()]; !was {
			syscall.Kill(p.pid, syscall.SIGKILL)
		}
	}
}
