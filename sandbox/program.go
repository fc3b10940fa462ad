package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"berth/oci"
)

// noProgram marks err, by which a process did not start, with ErrNoProgram if its
// program is not there. Each runtime has its own words for that, so they are not
// read: the program is looked for in the directory root, as the runtime does. What
// lies on mounts, root does not show.
func noProgram(err error, root string, process *specs.Process, mounts []specs.Mount) error {
	if said := (*oci.RuntimeError)(nil); !errors.As(err, &said) {
		return err // the runtime was not even asked
	}
	dir, openErr := os.OpenRoot(root)
	if openErr != nil {
		return err
	}
	defer dir.Close()
	for _, at := range programs(process) {
		hidden := slices.ContainsFunc(mounts, func(m specs.Mount) bool { return beneath(at, m.Destination) })
		if _, lookErr := resolveInside(dir, strings.TrimPrefix(at, "/")); hidden || !errors.Is(lookErr, fs.ErrNotExist) {
			return err
		}
	}
	return fmt.Errorf("%w: %w", ErrNoProgram, err)
}

// programs are the paths at which a process's program may be.
func programs(p *specs.Process) []string {
	name := p.Args[0]
	if strings.Contains(name, "/") {
		return []string{inDir(p.Cwd, name)}
	}
	var paths []string
	for _, variable := range p.Env {
		if dirs, ok := strings.CutPrefix(variable, "PATH="); ok {
			for dir := range strings.SplitSeq(dirs, ":") {
				paths = append(paths, inDir(p.Cwd, path.Join(dir, name)))
			}
		}
	}
	return paths
}

// inDir is the path that name means to a process in dir.
func inDir(dir, name string) string {
	if path.IsAbs(name) {
		return path.Clean(name)
	}
	return path.Join(dir, name)
}
