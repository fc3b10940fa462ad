package rootfs

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/test/leak"
)

// TestSameAsTar extracts each tar twice, with Extract and with GNU tar, and
// compares the trees: tar is the one oracle for what a tar means.
func TestSameAsTar(t *testing.T) {
	leak.NeedRoot(t)
	gnu := leak.NeedTool(t, "tar")
	old := time.Date(2001, 2, 3, 4, 5, 6, 0, time.UTC)
	before1970 := time.Date(1969, 12, 31, 23, 59, 58, 250_000_000, time.UTC)
	long := strings.Repeat("long-name/", 20) + strings.Repeat("n", 200)
	with := func(m member, change func(*tar.Header)) member { change(&m.Header); return m }

	tars := map[string][]byte{
		"plain": makeTar(t,
			with(dir("./", 0o755), func(h *tar.Header) { h.ModTime = old }),
			with(dir("usr/", 0o2755), func(h *tar.Header) { h.ModTime = old; h.Gid = 8 }),
			with(file("usr/suid", "#!"), func(h *tar.Header) { h.Mode = 0o4755; h.Uid = 12; h.Gid = 34 }),
			with(file("usr/sgid", "#!"), func(h *tar.Header) { h.Mode = 0o2711; h.ModTime = old }),
			with(dir("tmp/", 0o1777), func(h *tar.Header) { h.ModTime = old }),
			with(file("closed", ""), func(h *tar.Header) { h.Mode = 0 }),
			with(dir("locked", 0), func(h *tar.Header) { h.ModTime = old }),
			file("locked/in", "x"),
		),
		"links": makeTar(t,
			dir("a", 0o755), file("a/one", "1"), hardlink("a/two", "a/one"), hardlink("three", "./a/one"),
			symlink("rel", "a/one"), symlink("abs", "/etc/passwd"), symlink("up", "../../x"), symlink("dangling", "no/where"),
			hardlink("link-to-symlink", "rel"), symlink("dirlink", "a"), file("dirlink/through", "t"),
		),
		"nodes": makeTar(t,
			device("null", tar.TypeChar, 1, 3), device("disk", tar.TypeBlock, 259, 70000), device("fifo", tar.TypeFifo, 0, 0),
		),
		"again": makeTar(t,
			file("f", "first"), file("f", "second, longer"), symlink("s", "f"), file("s", "a file now"),
			file("d", "a file"), dir("d", 0o700), file("d/in", "x"), dir("d", 0o750),
			file("h", "1"), hardlink("h2", "h"), file("h", "2"), dir("empty", 0o755), symlink("empty", "f"),
			hardlink("f", "f"),
		),
		"pax": makeTar(t,
			with(file("ns", "x"), func(h *tar.Header) { h.Format = tar.FormatPAX; h.ModTime = time.Unix(12345, 678901234) }),
			with(file("1969", "x"), func(h *tar.Header) { h.Format = tar.FormatPAX; h.ModTime = before1970 }),
			with(file("big-ids", "x"), func(h *tar.Header) { h.Uid = 3_000_000_000; h.Gid = 4_000_000_000 }),
			with(file("ünïcode \n name", "x"), func(h *tar.Header) { h.Format = tar.FormatPAX }),
			with(file(long, "x"), func(h *tar.Header) { h.Format = tar.FormatPAX }),
			with(file("attrs", "x"), func(h *tar.Header) {
				h.PAXRecords = map[string]string{"SCHILY.xattr.user.colour": "blue\x00\xff", "SCHILY.xattr.security.capability": capability}
			}),
			with(dir("dattrs", 0o755), func(h *tar.Header) {
				h.PAXRecords = map[string]string{"SCHILY.xattr.user.d": "1"}
			}),
		),
		"gnu":   makeTar(t, with(file(long, "x"), func(h *tar.Header) { h.Format = tar.FormatGNU }), with(symlink("l", long), func(h *tar.Header) { h.Format = tar.FormatGNU })),
		"empty": makeTar(t),
	}
	for _, format := range []string{"gnu", "posix --sparse-version=0.0", "posix --sparse-version=0.1", "posix --sparse-version=1.0"} {
		tars["made by tar, "+format] = packedTree(t, gnu, strings.Fields("--sparse --format="+format)...)
	}
	for name, data := range tars {
		t.Run(name, func(t *testing.T) {
			ours, _, err := extract(t, data)
			if err != nil {
				t.Fatal(err)
			}
			theirs := t.TempDir()
			cmd := exec.Command(gnu, "--xattrs", "--xattrs-include=*", "--same-owner", "--numeric-owner", "-p", "-x", "-C", theirs)
			cmd.Stdin = bytes.NewReader(data)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("tar: %v: %s", err, out)
			}
			compareTrees(t, ours, theirs)
		})
	}
}

// capability is security.capability of cap_net_bind_service+ep, version 2.
const capability = "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// packedTree makes a real tree with what is hard to write by hand, and lets tar
// pack it.
func packedTree(t *testing.T, gnu string, args ...string) []byte {
	t.Helper()
	src := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	sparse, err := os.Create(filepath.Join(src, "sparse"))
	must(err)
	for _, at := range []int64{3, 100_000, 1<<20 + 1000} {
		_, err := sparse.WriteAt([]byte("data, not at a block"), at)
		must(err)
	}
	must(sparse.Truncate(3<<20 + 7))
	must(sparse.Close())
	hole, err := os.Create(filepath.Join(src, "hole"))
	must(err)
	must(hole.Truncate(64 << 20))
	must(hole.Close())
	must(os.WriteFile(filepath.Join(src, "f"), bytes.Repeat([]byte("x"), 70_000), 0o640))
	must(os.Link(filepath.Join(src, "f"), filepath.Join(src, "g")))
	must(unix.Mkfifo(filepath.Join(src, "fifo"), 0o640))
	stamp := time.Date(1968, 1, 2, 3, 4, 5, 999_999_999, time.UTC)
	must(os.Chtimes(filepath.Join(src, "f"), stamp, stamp))
	cmd := exec.Command(gnu, append(args, "-c", "-C", src, ".")...)
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("tar: %v: %s", err, errs.String())
	}
	return out
}

// compareTrees fails with each difference of two trees.
func compareTrees(t *testing.T, ours, theirs string) {
	t.Helper()
	a, b := describeTree(t, ours), describeTree(t, theirs)
	for name, want := range b {
		if got, ok := a[name]; !ok {
			t.Errorf("%q is missing", name)
		} else if got != want {
			t.Errorf("%q\n got %s\nwant %s", name, got, want)
		}
	}
	for name := range a {
		if _, ok := b[name]; !ok {
			t.Errorf("%q should not be", name)
		}
	}
}

func describeTree(t *testing.T, root string) map[string]string {
	t.Helper()
	all := map[string]string{}
	inodes := map[uint64][]string{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		text := fmt.Sprintf("mode %o owner %d:%d", st.Mode, st.Uid, st.Gid)
		switch info.Mode().Type() {
		case 0:
			inodes[st.Ino] = append(inodes[st.Ino], name)
			sum := sha256.Sum256([]byte(readFile(t, path)))
			text += fmt.Sprintf(" size %d sum %s", st.Size, hex.EncodeToString(sum[:4]))
		case fs.ModeSymlink:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			text += " -> " + target
		case fs.ModeDir:
		default:
			text += fmt.Sprintf(" device %x", st.Rdev)
		}
		if !implicit(info) {
			text += fmt.Sprintf(" time %d.%09d", st.Mtim.Sec, st.Mtim.Nsec)
		}
		all[name] = text + " attrs " + attrs(t, path)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, same := range inodes {
		slices.Sort(same)
		for _, name := range same {
			all[name] += fmt.Sprintf(" linked %q", same)
		}
	}
	return all
}

// implicit: tar gives what its archive does not name, or names without a time,
// the time of the extraction.
func implicit(info fs.FileInfo) bool {
	return info.IsDir() && (info.ModTime().Unix() == 0 || time.Since(info.ModTime()) < time.Hour)
}

func attrs(t *testing.T, path string) string {
	t.Helper()
	buf := make([]byte, 4096)
	n, err := unix.Llistxattr(path, buf)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for name := range strings.SplitSeq(strings.TrimRight(string(buf[:n]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		value := make([]byte, 4096)
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, fmt.Sprintf("%s=%q", name, value[:n]))
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

// TestSparseStaysSparse: a layer with a huge hole must not fill the disk.
func TestSparseStaysSparse(t *testing.T) {
	leak.NeedRoot(t)
	gnu := leak.NeedTool(t, "tar")
	data := packedTree(t, gnu, "--sparse", "--format=posix")
	into := t.TempDir()
	if _, err := Extract(context.Background(), into, bytes.NewReader(data), int64(len(data)), plenty, endless); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(into, "hole"), &st); err != nil {
		t.Fatal(err)
	}
	if st.Size != 64<<20 || st.Blocks*512 > 1<<20 {
		t.Errorf("hole of %d bytes takes %d bytes on disk", st.Size, st.Blocks*512)
	}
}
