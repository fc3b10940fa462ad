package cgroup

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
)

// OOMKills counts the processes in p and below that the kernel has killed
// because memory had run out. A cgroup that was removed from below p is no more
// counted on v1; what cannot be read counts as nothing.
func OOMKills(p string) uint64 {
	if !Valid(p) {
		return 0
	}
	var kills uint64
	for _, h := range hierarchies() {
		dir := filepath.Join(h.mount, p)
		switch {
		case h.v2:
			kills += counter(filepath.Join(dir, "memory.events"), "oom_kill") // of all that is below as well
		case slices.Contains(h.controllers, "memory"):
			_ = filepath.WalkDir(dir, func(name string, e fs.DirEntry, err error) error {
				if err == nil && e.IsDir() {
					kills += counter(filepath.Join(name, "memory.oom_control"), "oom_kill")
				}
				return nil
			})
		}
	}
	return kills
}

// counter is the value after key in a file of "key value" lines, 0 without one.
func counter(path, key string) uint64 {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	for line := range bytes.Lines(text) {
		if f := bytes.Fields(line); len(f) == 2 && string(f[0]) == key {
			n, _ := strconv.ParseUint(string(f[1]), 10, 64)
			return n
		}
	}
	return 0
}
