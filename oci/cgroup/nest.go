package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
)

// A nest is a cgroup below another, in one hierarchy, for some of the other's
// processes: they can be killed whole, and everything that limits or counts the
// other's goes on to do so. On v1 it is in the freezer's hierarchy, which limits
// and counts nothing. On v2 it has no controllers.

// Nest makes the nest of that name below p. dir is its directory on v1, where p's
// is its parent; empty on v2. The error is errors.ErrUnsupported where there
// cannot be one: without the freezer on v1, and on v2 below a cgroup that hands
// controllers on, where a nest would have limits and numbers of its own.
func Nest(p, name string) (dir string, err error) {
	parent, v2 := nesting(p)
	switch {
	case !Valid(p) || parent == "":
		return "", fmt.Errorf("a cgroup below %s needs the freezer or cgroup v2: %w", p, errors.ErrUnsupported)
	case v2:
		controllers, err := os.ReadFile(filepath.Join(parent, "cgroup.subtree_control"))
		if err != nil {
			return "", err
		}
		if len(bytes.TrimSpace(controllers)) > 0 {
			return "", fmt.Errorf("cgroup %s has subtree_control %q: %w", p, bytes.TrimSpace(controllers), errors.ErrUnsupported)
		}
	}
	if err := os.Mkdir(filepath.Join(parent, name), 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", fmt.Errorf("make cgroup: %w", err)
	}
	if v2 {
		return "", nil
	}
	return filepath.Join(parent, name), nil
}

// RemoveNests removes the nests below p that drop names and in which no process
// lives.
func RemoveNests(p string, drop func(name string) bool) {
	parent, _ := nesting(p)
	if !Valid(p) || parent == "" {
		return
	}
	entries, _ := os.ReadDir(parent)
	for _, e := range entries {
		if e.IsDir() && drop(e.Name()) {
			_ = syscall.Rmdir(filepath.Join(parent, e.Name()))
		}
	}
}

// nesting is where the nests below p are; empty if there are none here.
func nesting(p string) (parent string, v2 bool) {
	v1 := slices.ContainsFunc(hierarchies(), func(h hierarchy) bool { return !h.v2 })
	for _, h := range hierarchies() {
		if slices.Contains(h.controllers, "freezer") || h.v2 && !v1 {
			return filepath.Join(h.mount, p), h.v2
		}
	}
	return "", false
}
