package cgroup

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// hierarchy is one mounted cgroup hierarchy.
type hierarchy struct {
	mount       string
	v2          bool
	controllers []string // v1: the mount's own
}

// hierarchies reads the mounted ones once; nobody mounts more later on.
var hierarchies = sync.OnceValue(func() []hierarchy {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	defer f.Close()
	var hs []hierarchy
	for s := bufio.NewScanner(f); s.Scan(); {
		before, after, ok := strings.Cut(s.Text(), " - ")
		fields, tail := strings.Fields(before), strings.Fields(after)
		if !ok || len(fields) < 5 || len(tail) < 3 {
			continue
		}
		switch tail[0] {
		case "cgroup":
			hs = append(hs, hierarchy{mount: fields[4], controllers: strings.Split(tail[2], ",")})
		case "cgroup2":
			hs = append(hs, hierarchy{mount: fields[4], v2: true})
		}
	}
	return hs
})

// Unified returns the mount point of cgroup v2, on a hybrid node too; "" where
// there is none.
func Unified() string {
	for _, h := range hierarchies() {
		if h.v2 {
			return h.mount
		}
	}
	return ""
}

// Valid reports that p is a path this package accepts: absolute, clean, not the
// root.
func Valid(p string) bool {
	return path.IsAbs(p) && path.Clean(p) == p && p != "/"
}

// dirs lists the directories that p has in the hierarchies.
func dirs(p string) []string {
	var ds []string
	for _, h := range hierarchies() {
		d := filepath.Join(h.mount, p)
		if st, err := os.Stat(d); err == nil && st.IsDir() {
			ds = append(ds, d)
		}
	}
	return ds
}

// Procs lists the processes in p and below, in any hierarchy; zombies may be
// among them.
func Procs(p string) ([]int, error) {
	if !Valid(p) {
		return nil, fmt.Errorf("cgroup path %q: %w", p, errors.ErrUnsupported)
	}
	var pids []int
	for _, d := range dirs(p) {
		err := filepath.WalkDir(d, func(name string, e fs.DirEntry, err error) error {
			if err != nil || !e.IsDir() {
				return gone(err)
			}
			b, err := os.ReadFile(filepath.Join(name, "cgroup.procs"))
			for _, f := range bytes.Fields(b) {
				if pid, err := strconv.Atoi(string(f)); err == nil && pid > 0 {
					pids = append(pids, pid)
				}
			}
			return gone(err)
		})
		if err != nil {
			return nil, err
		}
	}
	slices.Sort(pids)
	return slices.Compact(pids), nil
}

// gone hides the errors of a cgroup that is removed while it is looked at, and
// of a v2 threaded cgroup, whose processes its parent lists.
func gone(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV) || errors.Is(err, syscall.EOPNOTSUPP) {
		return nil
	}
	return err
}

// Make creates p in every hierarchy and puts process pid into it. On v1 a new
// cpuset is empty and takes no process: it gets its parent's.
func Make(p string, pid int) error {
	if !Valid(p) {
		return fmt.Errorf("cgroup path %q: %w", p, errors.ErrUnsupported)
	}
	for _, h := range hierarchies() {
		d := filepath.Join(h.mount, p)
		if err := os.MkdirAll(d, 0o755); err != nil {
			return fmt.Errorf("make cgroup: %w", err)
		}
		if slices.Contains(h.controllers, "cpuset") {
			if err := inheritCpuset(h.mount, p); err != nil {
				return err
			}
		}
		if err := os.WriteFile(filepath.Join(d, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0); err != nil {
			return fmt.Errorf("enter cgroup: %w", err)
		}
	}
	return nil
}

func inheritCpuset(mount, p string) error {
	parent := mount
	for _, name := range strings.Split(strings.Trim(p, "/"), "/") {
		child := filepath.Join(parent, name)
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			own, err := os.ReadFile(filepath.Join(child, file))
			if err != nil {
				return err
			}
			if len(bytes.TrimSpace(own)) > 0 {
				continue
			}
			from, err := os.ReadFile(filepath.Join(parent, file))
			if err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(child, file), from, 0); err != nil {
				return err
			}
		}
		parent = child
	}
	return nil
}

// Remove removes p and everything below it in every hierarchy. Nil for what is
// not there; an error that is syscall.EBUSY while processes are left.
func Remove(p string) error {
	if !Valid(p) {
		return fmt.Errorf("cgroup path %q: %w", p, errors.ErrUnsupported)
	}
	var errs []error
	for _, d := range dirs(p) {
		errs = append(errs, removeTree(d))
	}
	return errors.Join(errs...)
}

func removeTree(d string) error {
	err := os.Remove(d) // most have nothing below
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	entries, rerr := os.ReadDir(d)
	if rerr != nil {
		return gone(rerr)
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeTree(filepath.Join(d, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := syscall.Rmdir(d); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove cgroup %s: %w", d, err)
	}
	return nil
}

// Children lists the names of the cgroups directly below p, in any hierarchy.
func Children(p string) []string {
	var names []string
	for _, d := range dirs(p) {
		entries, _ := os.ReadDir(d)
		for _, e := range entries {
			if e.IsDir() {
				names = append(names, e.Name())
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// Holds reports whether a process is in the cgroup at path or below it: its first
// process may have made others there for itself. The error is of a process that
// there is not.
func Holds(path string, pid int) (bool, error) {
	membership, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return false, err
	}
	for line := range bytes.Lines(membership) { // HIERARCHY:CONTROLLERS:PATH
		_, at, _ := bytes.Cut(line, []byte(":/"))
		at = bytes.TrimSuffix(at, []byte("\n"))
		if in := "/" + string(at); in == path || strings.HasPrefix(in, path+"/") {
			return true, nil
		}
	}
	return false, nil
}
