package runner

import (
	"fmt"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// spawn starts the runtime command. The caller calls release when it has ended.
//
// A runtime puts the process that it starts into the container's cgroups. Where
// there is a nest, the runtime sees that in place of the container's: so any runtime
// starts the process there, and leaves it in the container's own in all other
// hierarchies. The process never sees the mount namespace that does this.
func (c Run) spawn(cmd *exec.Cmd) (release func(), err error) {
	if c.Nest == "" {
		return func() {}, spawn(cmd, c.OOMScoreAdj)
	}
	spawned, ended := make(chan error), make(chan struct{})
	go inThread(func() error {
		err := showNest(c.Nest)
		if err == nil {
			err = spawn(cmd, c.OOMScoreAdj)
		}
		spawned <- err
		// The last one in a mount namespace takes it down, which would make the end
		// of the runtime, and so the exec, a millisecond longer.
		<-ended
		return nil
	})
	return func() { close(ended) }, <-spawned
}

// showNest moves the thread to a mount namespace in which a cgroup hides its parent.
func showNest(nest string) error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make mount namespace: %w", err)
	}
	// What is unmounted on the node goes from here too, but nothing the other way
	// round.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("make mounts slaves of the node's: %w", err)
	}
	if err := unix.Mount(nest, filepath.Dir(nest), "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("show cgroup %s: %w", nest, err)
	}
	return nil
}
