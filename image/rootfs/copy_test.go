package rootfs

import (
	"archive/tar"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/test/leak"
)

// copyOf copies the directory at path to a new one.
func copyOf(t *testing.T, path string, room func(int64) error) (string, error) {
	t.Helper()
	leak.NeedRoot(t)
	into := t.TempDir()
	to, err := os.Open(into)
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	from, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	return into, Copy(t.Context(), to, from, room)
}

func roomy(int64) error { return nil }

// A copy is what a tree was, with everything that a layer can bring: through
// overlayfs, as a container sees it.
func TestCopyIsTheSame(t *testing.T) {
	capable := file("program", "#!")
	capable.Mode = 0o4755
	capable.PAXRecords = map[string]string{
		paxXattr + "security.capability": string([]byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}),
		paxXattr + "user.empty":          "",
	}
	pipe := device("pipe", tar.TypeFifo, 0, 0)
	pipe.Uid, pipe.Gid = 5, 6
	data := dir("data", 0o3770)
	data.Uid, data.Gid, data.ModTime = 1000, 1001, time.Unix(1_000_000_000, 5)
	root, _ := mounted(t,
		[]member{data, owned(file("data/old", "old"), 7, 8), dir("data/deep", 0o700), file("data/deep/gone", "")},
		[]member{file("data/deep/.wh.gone", ""), file("data/deep/a", "a"), hardlink("data/b", "data/deep/a"), symlink("data/out", "/etc/passwd"),
			symlink("data/up", "../../.."), in("data", capable), in("data/deep", pipe), in("data", device("null", tar.TypeChar, 1, 3)), in("data", device("disk", tar.TypeBlock, 8, 0))})
	into, err := copyOf(t, filepath.Join(root, "data"), roomy)
	if err != nil {
		t.Fatal(err)
	}
	want, got := describe(t, filepath.Join(root, "data")), describe(t, into)
	if got != want {
		t.Errorf("copied\n%s\nwant\n%s", got, want)
	}
	if !strings.Contains(want, "deep/a 100644 0:0 2 links") || !strings.Contains(want, "security.capability") {
		t.Errorf("the tree lacks what is tried:\n%s", want)
	}
	a, err := os.Stat(filepath.Join(into, "b"))
	if err != nil {
		t.Fatal(err)
	}
	if b, err := os.Stat(filepath.Join(into, "deep", "a")); err != nil || !os.SameFile(a, b) {
		t.Errorf("a hard link became another file: %v", err)
	}
}

// in puts a member into a directory.
func in(dir string, m member) member {
	m.Name = dir + "/" + m.Name
	return m
}

// describe is all that a tree has to say of itself.
func describe(t *testing.T, root string) string {
	t.Helper()
	var all strings.Builder
	err := filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		name, _ := filepath.Rel(root, path)
		links := uint64(st.Nlink)
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			links = 0 // overlayfs counts them in its own way
		}
		fmt.Fprintf(&all, "%s %o %d:%d %d links, device %d, time %d.%d", name, st.Mode, st.Uid, st.Gid, links, st.Rdev, st.Mtim.Sec, st.Mtim.Nsec)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			fmt.Fprintf(&all, " %q", readFile(t, path))
			names, err := readXattr(func(buf []byte) (int, error) { return unix.Llistxattr(path, buf) })
			if err != nil {
				return err
			}
			fmt.Fprintf(&all, " %q", names)
		case unix.S_IFLNK:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&all, " %q", target)
		}
		all.WriteString("\n")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all.String()
}

// A file that is nothing but a hole costs no room, and none is written when there
// is none.
func TestCopyAsksForRoom(t *testing.T) {
	from := t.TempDir()
	for name, at := range map[string]int64{"hole": -1, "middle": 1 << 38} {
		f, err := os.Create(filepath.Join(from, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Truncate(1 << 40); err != nil {
			t.Fatal(err)
		}
		if at >= 0 {
			if _, err := f.WriteAt([]byte("data"), at); err != nil {
				t.Fatal(err)
			}
		}
		f.Close()
	}
	asked := int64(0)
	into, err := copyOf(t, from, func(n int64) error { asked += n; return nil })
	if err != nil {
		t.Fatal(err)
	}
	if asked == 0 || asked > 1<<20 {
		t.Errorf("it asked for %d bytes", asked)
	}
	f, err := os.Open(filepath.Join(into, "middle"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	buf := make([]byte, 4)
	if _, err := f.ReadAt(buf, 1<<38); err != nil || string(buf) != "data" {
		t.Errorf("in the middle is %q, %v", buf, err)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(into, "hole"), &st); err != nil || st.Size != 1<<40 || st.Blocks > 8 {
		t.Errorf("the hole has %d bytes in %d blocks, %v", st.Size, st.Blocks, err)
	}
	full := errors.New("full")
	if _, err := copyOf(t, from, func(int64) error { return full }); !errors.Is(err, full) {
		t.Errorf("without room: %v", err)
	}
}

// What names take in memory has a bound, which no real layer reaches.
func TestCopyOfAWideTree(t *testing.T) {
	leak.NeedRoot(t)
	c := &copier{ctx: t.Context(), room: roomy, pending: maxNames - nameCost - 1, links: map[fileID]string{}}
	from := t.TempDir()
	if err := errors.Join(os.Mkdir(filepath.Join(from, "a"), 0o700), os.Mkdir(filepath.Join(from, "b"), 0o700)); err != nil {
		t.Fatal(err)
	}
	dir, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	c.from = dir
	here := &pendingDir{}
	if err := c.entry(here, "a"); err != nil {
		t.Errorf("within the bound: %v", err)
	}
	if err := c.entry(here, "b"); !errors.Is(err, ErrInvalidTar) {
		t.Errorf("beyond the bound: %v", err)
	}
}

// A tree as deep as a layer can be costs a bounded number of open files.
func TestCopyOfADeepTree(t *testing.T) {
	leak.NeedRoot(t)
	const depth = 1900
	deep := t.TempDir()
	bottom := strings.Repeat("d/", depth)
	if err := errors.Join(os.MkdirAll(filepath.Join(deep, bottom), 0o755), os.WriteFile(filepath.Join(deep, bottom, "f"), []byte("found"), 0o600)); err != nil {
		t.Fatal(err)
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	few := unix.Rlimit{Cur: 64, Max: limit.Max}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &few); err != nil {
		t.Fatal(err)
	}
	into, err := copyOf(t, deep, roomy)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(filepath.Join(into, bottom, "f")); err != nil || string(data) != "found" {
		t.Errorf("at the bottom: %q, %v", data, err)
	}
}
