package oci

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// runDirSize bounds the tmpfs of a run directory. A pod's records and pins take
// some tens of kilobytes; its /dev/shm is a mount of its own.
const runDirSize = "256m"

// MakeRunDir makes dir, mode 0711, and mounts a tmpfs there unless it is on one:
// a record is written in a tenth of the time, the journal of output must not be
// written to a disk, and nothing in it may outlive the boot. Nobody but root can
// list it, but the root of a user namespace has to go through it to its own root
// filesystem.
func MakeRunDir(dir string) error {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return fmt.Errorf("make run directory: %w", err)
	}
	// Two daemons that start at once must not mount one above the other.
	below, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("make run directory: %w", err)
	}
	defer below.Close()
	if err := unix.Flock(int(below.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock run directory %s: %w", dir, err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return fmt.Errorf("look at run directory %s: %w", dir, err)
	}
	if fs.Type == unix.TMPFS_MAGIC {
		return below.Chmod(0o711)
	}
	flags := uintptr(unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC)
	if err := unix.Mount("berth", dir, "tmpfs", flags, "mode=0711,size="+runDirSize); err != nil {
		return fmt.Errorf("mount tmpfs at run directory %s: %w", dir, err)
	}
	return nil
}
