package rootfs

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"berth/test/leak"
)

// newUsers are those of a user namespace that lives until the test's end.
func newUsers(t *testing.T) *Users {
	t.Helper()
	leak.NeedRoot(t)
	u := &Users{UIDs: IDs{Host: 1 << 20, Size: 1 << 16}, GIDs: IDs{Host: 3 << 20, Size: 1 << 16}}
	holder := exec.Command("sleep", "infinity")
	holder.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{HostID: int(u.UIDs.Host), Size: int(u.UIDs.Size)}},
		GidMappings: []syscall.SysProcIDMap{{HostID: int(u.GIDs.Host), Size: int(u.GIDs.Size)}},
	}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := holder.Process.Kill(); err != nil {
			t.Error(err)
		}
		holder.Wait() // its error is the signal
	})
	u.Namespace = fmt.Sprintf("/proc/%d/ns/user", holder.Process.Pid)
	return u
}

// mountedFor is mounted for users, whose the upper directory is.
func mountedFor(t *testing.T, u *Users, layers ...[]member) (root, upper string) {
	t.Helper()
	top := t.TempDir()
	o := Overlay{Upper: filepath.Join(top, "upper"), Work: filepath.Join(top, "work"), Users: u}
	var stack []Layer
	for _, members := range layers {
		path, tree := mustExtract(t, members...)
		o.Lower = append([]string{path}, o.Lower...)
		stack = append([]Layer{{Root: path, Implied: tree.Implied}}, stack...)
	}
	if err := errors.Join(os.Mkdir(o.Upper, 0o755), os.Mkdir(o.Work, 0o755), os.Chown(o.Upper, int(u.UIDs.Host), int(u.GIDs.Host))); err != nil {
		t.Fatal(err)
	}
	return attach(t, o, stack), o.Upper
}

// owned is a file of an image with an owner.
func owned(m member, uid, gid int) member {
	m.Uid, m.Gid = uid, gid
	return m
}

func wantOwner(t *testing.T, path string, uid, gid uint32) {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil || st.Uid != uid || st.Gid != gid {
		t.Errorf("%s is %d:%d, %v, want %d:%d", path, st.Uid, st.Gid, err, uid, gid)
	}
}

// The owners of an image are the namespace's, in every layer; what a container
// changes, and what a layer only implies, keeps them.
func TestRootOfAUserNamespace(t *testing.T) {
	u := newUsers(t)
	const nobody = 65534
	layers := [][]member{
		{dir("a", 0o700), owned(dir("b", 0o711), 5, 6), owned(file("b/base", "base"), 7, 8), file("gone", ""), owned(file("far", ""), 1<<16, 1<<20)},
		{owned(file("b/top", "top"), 9, 10), file(".wh.gone", ""), owned(symlink("link", "b"), 11, 12)},
	}
	root, upper := mountedFor(t, u, layers...)
	owner := func(base string) func(name string, uid, gid uint32) {
		return func(name string, uid, gid uint32) { wantOwner(t, filepath.Join(base, name), uid, gid) }
	}
	seen, written := owner(root), owner(upper)
	uid, gid := u.UIDs.Host, u.GIDs.Host
	seen("", uid, gid)
	seen("a", uid, gid)
	seen("b", uid+5, gid+6) // which the upper layer implies
	seen("b/base", uid+7, gid+8)
	seen("b/top", uid+9, gid+10)
	seen("link", uid+11, gid+12)
	seen("far", nobody, nobody)
	if got := names(t, root); got != "a b far link" {
		t.Errorf("root has %q", got)
	}
	if info, err := os.Stat(filepath.Join(root, "b")); err != nil || info.Mode().Perm() != 0o711 {
		t.Errorf("b has mode %v, %v", info.Mode(), err)
	}
	if err := os.WriteFile(filepath.Join(root, "b", "base"), []byte("changed"), 0); err != nil {
		t.Fatal(err)
	}
	seen("b/base", uid+7, gid+8)
	written("b/base", uid+7, gid+8)
}

// passable lets other users go through the test's directories to root.
func passable(t *testing.T, root string) {
	t.Helper()
	for dir := filepath.Dir(root); dir != "/"; dir = filepath.Dir(dir) {
		if info, err := os.Stat(dir); err == nil && info.Mode()&0o1 == 0 {
			if err := os.Chmod(dir, info.Mode()|0o1); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// Guards against an upper directory of the host's root: `touch /new` by the
// namespace's root is denied.
func TestRootOfAUserNamespaceIsItsToWrite(t *testing.T) {
	u := newUsers(t)
	root, upper := mountedFor(t, u, []member{dir("etc", 0o755), owned(dir("home", 0o700), 1000, 1000)})
	passable(t, root)
	as := func(id uint32, script string) string {
		cmd := exec.Command("sh", "-c", script)
		cmd.Dir = root
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: u.UIDs.Host + id, Gid: u.GIDs.Host + id}}
		out, _ := cmd.CombinedOutput()
		return strings.TrimSpace(string(out))
	}
	if out := as(0, "touch new etc/new && mkdir dir"); out != "" {
		t.Errorf("its root: %s", out)
	}
	if out := as(1000, "touch home/mine"); out != "" {
		t.Errorf("its user: %s", out)
	}
	if out := as(1000, "touch etc/mine"); !strings.Contains(out, "Permission denied") {
		t.Errorf("its user in its root's directory: %q", out)
	}
	uid, gid := u.UIDs.Host, u.GIDs.Host
	for name, id := range map[string]uint32{"new": 0, "etc/new": 0, "dir": 0, "home/mine": 1000} {
		wantOwner(t, filepath.Join(root, name), uid+id, gid+id)
		wantOwner(t, filepath.Join(upper, name), uid+id, gid+id)
	}
}

// A layer's own mounts stay as they are: another container with another mapping,
// or none, sees the same tree at the same time, and nothing is left mounted.
func TestLayerIsSharedByUserNamespaces(t *testing.T) {
	u := newUsers(t)
	lower, _ := mustExtract(t, owned(file("f", ""), 1, 2))
	before := mountTable(t)
	for _, test := range []struct {
		users    *Users
		uid, gid uint32
	}{{nil, 1, 2}, {u, u.UIDs.Host + 1, u.GIDs.Host + 2}, {nil, 1, 2}} {
		top := t.TempDir()
		o := Overlay{Lower: []string{lower, lower}, Upper: filepath.Join(top, "upper"), Work: filepath.Join(top, "work"), Users: test.users}
		if err := errors.Join(os.Mkdir(o.Upper, 0o755), os.Mkdir(o.Work, 0o755)); err != nil {
			t.Fatal(err)
		}
		mount, err := Mount(o)
		if err != nil {
			t.Fatal(err)
		}
		defer mount.Close()
		wantOwner(t, fmt.Sprintf("/proc/self/fd/%d/f", mount.Fd()), test.uid, test.gid)
		wantOwner(t, filepath.Join(lower, "f"), 1, 2)
	}
	if after := mountTable(t); after != before {
		t.Errorf("mounts are left:\n%s\nbefore:\n%s", after, before)
	}
}

func mountTable(t *testing.T) string {
	t.Helper()
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return string(table)
}

// A filesystem without id mappings is named as such.
func TestLayerThatCannotBeMapped(t *testing.T) {
	u := newUsers(t)
	o := Overlay{Lower: []string{"/proc/sys"}, Users: u}
	if mount, err := Mount(o); !errors.Is(err, ErrNotSupported) || !strings.Contains(err.Error(), "/proc/sys") {
		mount.Close()
		t.Errorf("got %v, want ErrNotSupported", err)
	}
	o.Lower, o.Users = []string{t.TempDir()}, &Users{Namespace: filepath.Join(t.TempDir(), "none")}
	if mount, err := Mount(o); !errors.Is(err, os.ErrNotExist) {
		mount.Close()
		t.Errorf("got %v, want a missing namespace", err)
	}
}
