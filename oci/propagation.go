package oci

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Propagation says whether what is mounted below a mount, or below its copies,
// appears in the others.
type Propagation struct {
	Mount  string // where it is
	Shared bool   // both ways
	Slave  bool   // from its master to it
}

// PropagationOf looks at the mount that path is on, in this process's mount
// namespace.
func PropagationOf(path string) (Propagation, error) {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_NO_AUTOMOUNT|unix.AT_SYMLINK_NOFOLLOW, unix.STATX_MNT_ID, &st)
	if err != nil {
		return Propagation{}, fmt.Errorf("look at %s: %w", path, err)
	}
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return Propagation{}, err
	}
	defer f.Close()
	id := strconv.FormatUint(st.Mnt_id, 10)
	s := bufio.NewScanner(f)
	for s.Scan() {
		// 36 35 98:0 / /mnt rw,noatime shared:1 master:2 - ext3 /dev/root rw
		fields := strings.Fields(s.Text())
		if len(fields) < 7 || fields[0] != id {
			continue
		}
		p := Propagation{Mount: fields[4]}
		for _, tag := range fields[6:] {
			if tag == "-" {
				break
			}
			p.Shared = p.Shared || strings.HasPrefix(tag, "shared:")
			p.Slave = p.Slave || strings.HasPrefix(tag, "master:")
		}
		return p, nil
	}
	return Propagation{}, fmt.Errorf("look at %s: its mount is not in mountinfo: %w", path, s.Err())
}
