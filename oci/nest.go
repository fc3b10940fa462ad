package oci

import (
	"errors"
	"fmt"
	"path"

	"berth/oci/cgroup"
)

// LooseError says that an exec was killed without all that it has started.
type LooseError struct{ Why error }

func (e *LooseError) Error() string {
	return "processes that left its session may live on: " + e.Why.Error()
}

func (e *LooseError) Unwrap() error { return e.Why }

// nest makes the cgroup of an exec that is to be killed whole, below the
// container's. dir is for the runner; empty: the runtime's exec is told the
// cgroup's name. The error says why there is none.
func (r *Runtime) nest(c Container, id string) (dir string, err error) {
	dir, err = cgroup.Nest(c.Cgroup, id)
	if err == nil && dir == "" && r.quirks.noExecCgroup {
		return "", fmt.Errorf("%s is not known to start a process below the container's cgroup", r.Version)
	}
	return dir, err
}

// nestPath is the path of an exec's nest.
func nestPath(container, id string) string { return path.Join(container, id) }

// checkNest says whether the runtime has started the exec elsewhere: one that keeps
// containers in a machine of their own has no process of theirs in a cgroup.
func checkNest(c Container, id string, pid int) error {
	if in, err := cgroup.Holds(nestPath(c.Cgroup, id), pid); err != nil || in { // it may have ended
		return nil
	}
	return errors.New("the runtime has not started it in the cgroup that it was given")
}

// removeNests removes those of execs that have ended. What one has left behind
// keeps its nest until it ends too and another exec comes by, or until the
// container is removed.
func (r *Runtime) removeNests(c Container) { cgroup.RemoveNests(c.Cgroup, r.abandoned) }
