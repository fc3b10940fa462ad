package image

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// newUsers are those of a user namespace that lives until the test's end: the ids
// 0 to 65535 are 1 << 20 and 3 << 20 and what follows them on the host.
func newUsers(t *testing.T) *Users {
	t.Helper()
	u := &Users{UIDs: IDs{Host: 1 << 20, Size: 1 << 16}, GIDs: IDs{Host: 3 << 20, Size: 1 << 16}}
	holder := exec.Command("sleep", "infinity")
	holder.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{HostID: int(u.UIDs.Host), Size: int(u.UIDs.Size)}},
		GidMappings: []syscall.SysProcIDMap{{HostID: int(u.GIDs.Host), Size: int(u.GIDs.Size)}},
	}
	check(holder.Start())
	t.Cleanup(func() {
		check(holder.Process.Kill())
		holder.Wait() // its error is the signal
	})
	u.Namespace = "/proc/" + strconv.Itoa(holder.Process.Pid) + "/ns/user"
	return u
}

func owner(t *testing.T, path string, uid, gid uint32) {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil || st.Uid != uid || st.Gid != gid {
		t.Errorf("%s is %d:%d, %v, want %d:%d", path, st.Uid, st.Gid, err, uid, gid)
	}
}

// A root for a user namespace is its root's, as is what is written to, also when
// it is mounted again; the same image serves containers without one.
func TestRootForAUserNamespace(t *testing.T) {
	f, s := newFake(t), newStore(t)
	f.image("a", "v1", spec{layers: [][]byte{files("f", "base", "implied/g", "")}})
	f.image("scratch", "v1", spec{})
	u := newUsers(t)
	for name, ref := range map[string]string{"a": f.host() + "/a:v1", "scratch": f.host() + "/scratch:v1"} {
		img := pull(t, s, ref)
		for range 2 {
			root, err := s.Root(context.Background(), name, img, u)
			mounted := at(t, root, err)
			owner(t, mounted, 1<<20, 3<<20)
			if name == "a" {
				owner(t, filepath.Join(mounted, "f"), 1<<20, 3<<20)
				check(os.WriteFile(filepath.Join(mounted, "f"), []byte("changed"), 0o644))
			}
			check(unix.Unmount(mounted, 0))
		}
		owner(t, s.path(containersDir, name, "upper"), 1<<20, 3<<20)
		view, err := s.View(context.Background(), name, img, u)
		viewed := at(t, view, err)
		owner(t, viewed, 1<<20, 3<<20)
		if name == "a" {
			owner(t, filepath.Join(viewed, "f"), 1<<20, 3<<20)
			owner(t, filepath.Join(viewed, "implied"), 1<<20, 3<<20)
		}
		check(unix.Unmount(viewed, 0))
		owner(t, newRoot(t, s, name+"-host", img), 0, 0)
		removeRoot(t, s, name)
		removeRoot(t, s, name+"-host")
	}
}
