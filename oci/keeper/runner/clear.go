package runner

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"berth/oci/cgroup"

	"golang.org/x/sys/unix"
)

// clear kills what is left of a process and undoes what start made.
func (r *runner) clear(c Clear) error {
	ctx, cancel := context.WithTimeout(context.Background(), killTimeout)
	defer cancel()
	if c.Dir != "" {
		r.killStrays(c.Dir)
		defer r.dropScratch(c.Dir)
	}
	// A command whose caller gave up may be under way; killed, it ends.
	r.mu.Lock()
	cmd := r.commands[c.ID]
	r.mu.Unlock()
	if cmd != nil {
		<-cmd.done
	}
	if c.Cgroup != "" {
		if err := end(ctx, c.Cgroup); err != nil {
			return err
		}
	}
	r.out.drop(c.ID)
	for _, path := range []string{c.PIDNS, c.Root} {
		if path == "" {
			continue
		}
		if err := detach(path); err != nil {
			return err
		}
	}
	return detachAll(c.Views)
}

// end kills what is in a cgroup and removes it.
func end(ctx context.Context, path string) error {
	if err := cgroup.Kill(ctx, path); err != nil {
		return err
	}
	return cgroup.Remove(path)
}

// attach moves a detached mount to target, a directory that is made; nil if it is
// there already. Another mount there is that of a try which a dead berthd has asked
// for: its layers are in use by this one now. The root of a user namespace has to go
// through what is made.
func attach(mount *os.File, target string) error {
	if mounted(target) {
		if mountID(int(mount.Fd()), "", unix.AT_EMPTY_PATH) == mountID(unix.AT_FDCWD, target, unix.AT_SYMLINK_NOFOLLOW) {
			return nil
		}
		if err := detach(target); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(target, 0o711); err != nil {
		return err
	}
	if err := unix.MoveMount(int(mount.Fd()), "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("attach filesystem at %s: %w", target, err)
	}
	return nil
}

// detach unmounts target and removes it. Copies of the mount in other mount
// namespaces live on and must not make a removal fail.
func detach(target string) error {
	for {
		err := unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			break
		}
		if err != nil {
			return fmt.Errorf("unmount %s: %w", target, err)
		}
	}
	if err := os.Remove(target); err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.EBUSY) {
		return err
	}
	return nil
}

// detachAll detaches what is in dir, and removes it; nil if there is none.
func detachAll(dir string) error {
	if dir == "" {
		return nil
	}
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := detach(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return detach(dir)
}

// mountID tells mounts apart; 0 if there is none.
func mountID(dir int, path string, flags int) uint64 {
	var st unix.Statx_t
	if err := unix.Statx(dir, path, flags, unix.STATX_MNT_ID, &st); err != nil {
		return 0
	}
	return st.Mnt_id
}

// mounted reports that target is the root of a mount.
func mounted(target string) bool {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, target, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BASIC_STATS, &st)
	return err == nil && st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
}
