package rootfs

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"

	"golang.org/x/sys/unix"
)

// Users are the ids of a user namespace. A root that is mounted for them shows
// them the owners of its layers as those of their own; to the host, both are
// ids of the namespace.
type Users struct {
	Namespace  string // path of it, pinned
	UIDs, GIDs IDs
}

// IDs are the ids 0 to Size-1 of a user namespace: on the host, they are Host
// and those that follow it.
type IDs struct {
	Host, Size uint32
}

// owner is what chown takes for the owner of st, which a layer's tree says: -1,
// to leave it, for who is nobody in the namespace.
func (u *Users) owner(st *unix.Stat_t) (uid, gid int) {
	if u == nil {
		return int(st.Uid), int(st.Gid)
	}
	return u.UIDs.host(st.Uid), u.GIDs.host(st.Gid)
}

func (i IDs) host(id uint32) int {
	if id >= i.Size {
		return -1
	}
	return int(i.Host) + int(id)
}

// mapLayers lays over each layer's tree a mount of itself with the ids of the
// user namespace. The caller's mounts are its own.
func mapLayers(layers []string, namespace string) error {
	ns, err := os.Open(namespace)
	if err != nil {
		return fmt.Errorf("open user namespace: %w", err)
	}
	defer ns.Close()
	for i, layer := range layers {
		if slices.Contains(layers[:i], layer) {
			continue
		}
		if err := mapLayer(layer, ns); err != nil {
			return fmt.Errorf("map the ids of layer %s: %w", layer, err)
		}
	}
	return nil
}

func mapLayer(layer string, ns *os.File) error {
	fd, err := unix.OpenTree(unix.AT_FDCWD, layer, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("open_tree", err)
	}
	defer unix.Close(fd)
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ns.Fd())}
	err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr)
	if errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("%w: this filesystem has no id-mapped mounts: %w", ErrNotSupported, err)
	}
	if err != nil {
		return os.NewSyscallError("mount_setattr", err)
	}
	err = unix.MoveMount(fd, "", unix.AT_FDCWD, layer, unix.MOVE_MOUNT_F_EMPTY_PATH)
	return os.NewSyscallError("move_mount", err)
}

// inOwnMounts runs f on a thread with a copy of all mounts, which ends with it:
// what f mounts nobody else sees. Overlayfs before Linux 6.15 takes no layer
// that is mounted nowhere.
func inOwnMounts(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		if unix.Gettid() != unix.Getpid() {
			done <- withOwnMounts(f)
			return
		}
		// The process's first thread never ends: it would keep the mounts. While
		// it is locked here, f gets another.
		done <- inOwnMounts(f)
		runtime.UnlockOSThread()
	}()
	return <-done
}

func withOwnMounts(f func() error) error {
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	return f()
}
