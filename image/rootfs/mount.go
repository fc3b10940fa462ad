package rootfs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrNotSupported: this kernel lacks what a container root needs; the text
// names the least version that has it.
var ErrNotSupported = errors.New("not supported by this kernel")

// MaxLayers is how many layers overlayfs stacks (OVL_MAX_STACK, 500), less the
// one that a read-only root has above those of its image.
const MaxLayers = 499

// Overlay is a container's root to be mounted. Paths are absolute.
type Overlay struct {
	Lower []string // layer trees, the uppermost first; at least one
	Upper string   // writable layer
	Work  string   // overlayfs's own, beside Upper on the same filesystem
	Users *Users   // Upper belongs to their ids 0; nil: the host's

	ReadOnly bool // Upper is one more layer, above Lower; Work is not used
}

// Mount mounts the overlay and returns it detached: it is in no mount
// namespace until somebody attaches it, and gone when the file is closed
// before. A layer that occurs twice counts where it is uppermost: below, it
// could add nothing, and overlayfs refuses it.
//
// A mount that can be written to is volatile: nothing of Upper is synced, so it
// must not be used after a reboot. It is neither nosuid nor nodev: setuid programs must work,
// and which devices may be opened is the cgroup's to say. ErrNotSupported.
func Mount(o Overlay) (mount *os.File, err error) {
	if o.Users == nil {
		return mountOverlay(o)
	}
	err = inOwnMounts(func() (err error) {
		if err := mapLayers(o.Lower, o.Users.Namespace); err != nil {
			return err
		}
		mount, err = mountOverlay(o)
		return err
	})
	return mount, err
}

func mountOverlay(o Overlay) (*os.File, error) {
	if !o.ReadOnly {
		// A mount marks Work, so that the next one refuses what may be unsynced.
		// The same boot's page cache has it all.
		if err := os.RemoveAll(filepath.Join(o.Work, "work", "incompat")); err != nil {
			return nil, err
		}
	}
	fd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	switch {
	case errors.Is(err, unix.ENODEV):
		return nil, fmt.Errorf("%w: overlayfs is missing (CONFIG_OVERLAY_FS)", ErrNotSupported)
	case err != nil:
		return nil, os.NewSyscallError("fsopen", err)
	}
	defer unix.Close(fd)
	if err := configure(fd, o); err != nil {
		return nil, err
	}
	if err := unix.FsconfigCreate(fd); err != nil {
		return nil, fmt.Errorf("mount overlay: %w%s", err, kernelLog(fd))
	}
	mount, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("mount overlay: %w%s", err, kernelLog(fd))
	}
	return os.NewFile(uintptr(mount), "overlay"), nil
}

// configure sets the options, whatever the kernel's defaults. Metadata-only copies
// stay off: a file of Upper holds its own data.
//
// A container may rename a directory of its image: the kernel then leaves in Upper a
// redirect, an attribute (trusted.overlay.redirect) that names where the layers
// beneath have the directory; without it, rename(2) would be EXDEV. So whoever reads
// an Upper as a layer of its own has to follow redirects. Layers have none: Extract
// drops the attribute, a container cannot set it through overlayfs, and where nothing
// is written none is followed. Each kernel that has lowerdir+ has redirects; if the
// filesystem of Upper has no trusted attributes, the kernel goes on without.
func configure(fd int, o Overlay) error {
	lowers := o.Lower
	options := [][2]string{{"source", "berth"}, {"index", "off"}, {"metacopy", "off"}}
	if o.ReadOnly {
		lowers = append([]string{o.Upper}, o.Lower...)
		options = append(options, [2]string{"redirect_dir", "nofollow"})
	} else {
		options = append(options, [][2]string{{"redirect_dir", "on"}, {"upperdir", escape(o.Upper)}, {"workdir", escape(o.Work)}}...)
	}
	for _, option := range options {
		if err := unix.FsconfigSetString(fd, option[0], option[1]); err != nil {
			return fmt.Errorf("mount overlay: option %s: %w%s", option[0], err, kernelLog(fd))
		}
	}
	for i, lower := range lowers {
		if slices.Contains(lowers[:i], lower) {
			continue
		}
		err := unix.FsconfigSetString(fd, "lowerdir+", lower)
		if log := kernelLog(fd); errors.Is(err, unix.EINVAL) && (log == "" || strings.Contains(log, "nknown parameter")) {
			return fmt.Errorf("%w: overlay layers one by one (lowerdir+) need Linux 6.8", ErrNotSupported)
		} else if err != nil {
			return fmt.Errorf("mount overlay: layer %s: %w%s", lower, err, log)
		}
	}
	if o.ReadOnly {
		return nil
	}
	if err := unix.FsconfigSetFlag(fd, "volatile"); err != nil {
		return fmt.Errorf("mount overlay: option volatile: %w%s", err, kernelLog(fd))
	}
	return nil
}

// escape: overlayfs takes a backslash in upperdir and workdir as an escape.
func escape(path string) string { return strings.ReplaceAll(path, `\`, `\\`) }

// kernelLog is what the kernel says of a mount that is being made: one message
// a read.
func kernelLog(fd int) string {
	var log strings.Builder
	buf := make([]byte, 1024)
	for {
		n, err := unix.Read(fd, buf)
		if n <= 0 || err != nil {
			return log.String()
		}
		log.WriteString(": " + strings.TrimSpace(string(buf[:n])))
	}
}
