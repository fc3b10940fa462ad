package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"berth/image/rootfs"
)

// volumesDir is where containers/<id> has the volumes of its image: directories
// whose names are numbers.
const volumesDir = "volumes"

// Volumes makes the volumes of container id, which has a writable layer, and
// returns the directory that holds them as a detached mount, which the caller
// attaches or closes: the volume of paths[i] is the directory i in it.
//
// A volume lies on the store's own filesystem, not on an overlay. It begins with
// what root, the container's root, has at its path, with the same owners and
// modes; without anything there, it is empty and belongs to root. Symlinks are
// followed as a container would follow them. Volumes may be asked for again, with
// the same paths: what they hold by then stays. They count in RootUsage and last
// until RemoveRoot.
//
// Errors: ErrInvalidImage (a path is not a directory), *SpaceError, ctx's.
func (s *Store) Volumes(ctx context.Context, id string, root *os.File, paths []string, users *Users) (*os.File, error) {
	volumes, err := s.volumes(ctx, id, root, paths, users)
	if err != nil {
		return nil, fmt.Errorf("volumes of container %s: %w", id, err)
	}
	return volumes, nil
}

func (s *Store) volumes(ctx context.Context, id string, root *os.File, paths []string, users *Users) (*os.File, error) {
	unlock, err := s.busy.lock(ctx, "root "+id)
	if err != nil {
		return nil, err
	}
	defer unlock()
	s.mu.Lock()
	_, there := s.roots[id]
	s.mu.Unlock()
	if !there {
		return nil, fmt.Errorf("container %q has no writable layer", id)
	}
	at := s.path(containersDir, id, volumesDir)
	if _, err := os.Lstat(at); errors.Is(err, os.ErrNotExist) {
		if err := s.makeVolumes(ctx, at, root, paths, users); err != nil {
			return nil, s.spaceError(err, 0)
		}
	}
	return detachedClone(at)
}

// makeVolumes fills the volumes before they appear, so that a crash leaves none
// half filled.
func (s *Store) makeVolumes(ctx context.Context, at string, root *os.File, paths []string, users *Users) error {
	temp, err := s.temp()
	if err != nil {
		return err
	}
	for i, path := range paths {
		if err = s.makeVolume(ctx, filepath.Join(temp, strconv.Itoa(i)), root, path, users); err != nil {
			err = fmt.Errorf("volume %.200q: %w", path, err)
			break
		}
	}
	if err == nil {
		err = letThrough(temp)
	}
	if err != nil {
		return errors.Join(err, s.discard(temp))
	}
	return s.place(temp, at)
}

// letThrough lets the root of a user namespace go through a directory of ours.
func letThrough(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Chmod(0o711), f.Close())
}

func (s *Store) makeVolume(ctx context.Context, at string, root *os.File, path string, users *Users) error {
	if err := s.room(0); err != nil {
		return err
	}
	if err := mkdir(at, 0o755); err != nil {
		return err
	}
	from, err := findDir(root, path)
	if errors.Is(err, os.ErrNotExist) {
		if users == nil {
			return nil
		}
		return os.Lchown(at, int(users.UIDs.Host), int(users.GIDs.Host))
	}
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := os.Open(at)
	if err != nil {
		return err
	}
	defer to.Close()
	err = rootfs.Copy(ctx, to, from, s.room)
	if errors.Is(err, rootfs.ErrInvalidTar) {
		return fmt.Errorf("%w: %w", ErrInvalidImage, err)
	}
	return err
}

// findDir opens a directory as a process would whose root is root.
func findDir(root *os.File, path string) (*os.File, error) {
	fd, err := unix.Openat2(int(root.Fd()), path, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT,
	})
	switch {
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENAMETOOLONG):
		return nil, fmt.Errorf("%w: a volume must be a directory: %w", ErrInvalidImage, err)
	case err != nil:
		return nil, os.NewSyscallError("openat2", err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// detachedClone is a directory as a mount of its own, which takes part in no
// other.
func detachedClone(dir string) (*os.File, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return nil, &os.PathError{Op: "open_tree", Path: dir, Err: err}
	}
	mount := os.NewFile(uintptr(fd), dir)
	private := unix.MountAttr{Propagation: unix.MS_PRIVATE}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &private); err != nil {
		return nil, errors.Join(os.NewSyscallError("mount_setattr", err), mount.Close())
	}
	return mount, nil
}
