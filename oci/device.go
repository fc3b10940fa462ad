package oci

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// ErrNoDevice: there is no device node at a path, or below it.
var ErrNoDevice = errors.New("not a device")

// notDevices are directories of /dev that hold mounts and links, no devices of
// the node.
var notDevices = []string{"pts", "shm", "mqueue", "fd"}

// maxEntries bounds what is looked at below a directory: there may be a whole
// filesystem.
const maxEntries = 1 << 16

// Devices describes the device node that path names, with its owner and mode; if
// path is a directory, all those below it. Their paths are the host's. Symlinks
// are followed in path alone, never below it. ErrNoDevice; fs.ErrNotExist.
func Devices(path string) ([]specs.LinuxDevice, error) {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, err
	}
	var devices []specs.LinuxDevice
	entries := 0
	err = filepath.WalkDir(real, func(at string, e fs.DirEntry, err error) error {
		switch entries++; {
		case entries > maxEntries:
			return fmt.Errorf("%s holds more than %d files; name a directory of devices", path, maxEntries)
		case errors.Is(err, fs.ErrNotExist) && at != real:
			return nil // unplugged while we look
		case err != nil:
			return err
		case e.IsDir() && at != real && slices.Contains(notDevices, e.Name()):
			return fs.SkipDir
		case e.Type()&os.ModeDevice == 0:
			return nil
		}
		d, err := device(at)
		if err == nil {
			d.Path = filepath.Join(path, at[len(real):])
			devices = append(devices, d)
		}
		return err
	})
	if err == nil && len(devices) == 0 {
		err = fmt.Errorf("%s: %w", path, ErrNoDevice)
	}
	return devices, err
}

func device(path string) (specs.LinuxDevice, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return specs.LinuxDevice{}, err
	}
	kind := "c"
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		kind = "b"
	}
	mode := os.FileMode(st.Mode &^ unix.S_IFMT)
	return specs.LinuxDevice{
		Type: kind, Major: int64(unix.Major(st.Rdev)), Minor: int64(unix.Minor(st.Rdev)),
		FileMode: &mode, UID: &st.Uid, GID: &st.Gid,
	}, nil
}
