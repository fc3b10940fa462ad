package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// processes are those that execute one of the programs. A program in a container
// is named by its path there.
func processes(programs ...string) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var all []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		exe, err := os.Readlink(filepath.Join("/proc", e.Name(), "exe"))
		if err == nil && slices.Contains(programs, exe) {
			all = append(all, pid)
		}
	}
	return all, nil
}

const mebibyte = 1 << 20

// memory is the proportional set size of all processes that execute one of the
// programs, in bytes: a page that n processes share counts a n-th for each.
func memory(programs ...string) (bytes float64, err error) {
	all, err := processes(programs...)
	if err != nil {
		return 0, err
	}
	for _, pid := range all {
		kib, err := pss(pid)
		if err != nil {
			return 0, err
		}
		bytes += float64(kib) * 1024
	}
	return bytes, nil
}

// pss is in KiB; 0 of a process that is gone.
func pss(pid int) (kib int64, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	for line := range bytes.Lines(text) {
		if rest, ok := bytes.CutPrefix(line, []byte("Pss:")); ok {
			return strconv.ParseInt(string(bytes.Fields(rest)[0]), 10, 64)
		}
	}
	return 0, fmt.Errorf("process %d has no Pss in smaps_rollup", pid)
}

// cpuTimes is the CPU time of each process that executes one of the programs, in
// user and kernel, with threads that have ended.
func cpuTimes(programs ...string) (map[int]time.Duration, error) {
	all, err := processes(programs...)
	if err != nil {
		return nil, err
	}
	times := map[int]time.Duration{}
	for _, pid := range all {
		// CPUCLOCK_SCHED of another process: see clock_getcpuclockid(3).
		const sched = 2
		var at unix.Timespec
		if err := unix.ClockGettime(int32(^pid)<<3|sched, &at); errors.Is(err, syscall.EINVAL) {
			continue // it is gone
		} else if err != nil {
			return nil, fmt.Errorf("CPU time of process %d: %w", pid, err)
		}
		times[pid] = time.Duration(at.Nano())
	}
	return times, nil
}

// cpuDuring is the CPU time that processes of the programs take while do runs.
func cpuDuring(do func() error, programs ...string) (time.Duration, error) {
	before, err := cpuTimes(programs...)
	if err != nil {
		return 0, err
	}
	if err := do(); err != nil {
		return 0, err
	}
	after, err := cpuTimes(programs...)
	if err != nil {
		return 0, err
	}
	var sum time.Duration
	for pid, t := range after {
		sum += t - before[pid]
	}
	return sum, nil
}

// cpuOfRun is the CPU time of everything that the run has started and of its
// containers, without our own: also of what ran for a moment only.
func cpuOfRun() (time.Duration, error) {
	all, err := cpuOfCgroup()
	if err != nil {
		return 0, err
	}
	var own unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &own); err != nil {
		return 0, err
	}
	return all - time.Duration(own.Utime.Nano()+own.Stime.Nano()), nil
}

// cpuOfCgroup is that of the cgroup that is shown as the root.
func cpuOfCgroup() (time.Duration, error) {
	hierarchies, err := cgroupMounts()
	if err != nil {
		return 0, err
	}
	for _, h := range hierarchies {
		if text, err := os.ReadFile(filepath.Join(h.point, "cpuacct.usage")); err == nil {
			ns, err := strconv.ParseInt(string(bytes.TrimSpace(text)), 10, 64)
			return time.Duration(ns), err
		}
	}
	for _, h := range hierarchies {
		text, err := os.ReadFile(filepath.Join(h.point, "cpu.stat"))
		if err != nil {
			continue
		}
		for line := range bytes.Lines(text) {
			if value, ok := bytes.CutPrefix(line, []byte("usage_usec ")); ok {
				us, err := strconv.ParseInt(string(bytes.TrimSpace(value)), 10, 64)
				return time.Duration(us) * time.Microsecond, err
			}
		}
	}
	return 0, errors.New("no cgroup tells its CPU time")
}
