package runner

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// tried are any ids: the namespace that is made to try with them holds nothing.
var tried = IDs{Host: 1 << 16, Size: 1 << 16}

// tryUserNS makes a user namespace, and mounts with its ids, and drops them.
func tryUserNS(t TryUserNS) error {
	u, err := startUserNS(tried, tried, 0)
	if err != nil {
		return err
	}
	defer u.close()
	if _, err := u.order(order{Pass: t.Pass}); err != nil {
		return err
	}
	if err := u.open(u.pid, "user"); err != nil {
		return err
	}
	if err := u.goOn(); err != nil {
		return err
	}
	for _, dir := range t.Map {
		if err := tryMapping(dir, int(u.ns["user"].Fd())); err != nil {
			return err
		}
	}
	return nil
}

func tryMapping(dir string, userns int) error {
	fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("clone the mount of %s: %w", dir, err)
	}
	defer unix.Close(fd)
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(userns)}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return fmt.Errorf("map the ids of a mount of %s: %w", dir, err)
	}
	return nil
}
