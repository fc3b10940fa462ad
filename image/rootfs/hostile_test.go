package rootfs

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"berth/test/leak"
)

// hostile are layers that try to get out of their tree, or to hang or confuse
// whoever extracts them. refused ones must fail with ErrInvalidTar; the others
// must extract harmlessly. All of them seed FuzzExtract.
func hostile(t testing.TB) map[string]struct {
	data    []byte
	refused bool
} {
	type layer = struct {
		data    []byte
		refused bool
	}
	tarOf := func(members ...member) []byte { return makeTar(t, members...) }
	xattr := func(m member, name, value string) member {
		m.PAXRecords = map[string]string{"SCHILY.xattr." + name: value}
		return m
	}
	owned := func(m member, uid int) member { m.Uid = uid; return m }
	deep := strings.Repeat("d/", maxPath/2+10) + "f"
	return map[string]layer{
		"dot dot":                       {tarOf(file("../canary", "x")), true},
		"dot dot inside":                {tarOf(dir("a", 0o755), file("a/../../canary", "x")), true},
		"absolute":                      {tarOf(file("/canary", "x")), false},
		"absolute dot dot":              {tarOf(file("/../canary", "x")), true},
		"symlink up, file through":      {tarOf(symlink("s", ".."), file("s/canary", "x")), false},
		"symlink up twice":              {tarOf(symlink("s", "../.."), symlink("s/t", "../.."), file("s/t/canary", "x")), false},
		"symlink absolute":              {tarOf(symlink("s", "/"), file("s/canary", "x")), false},
		"symlink to host dir":           {tarOf(symlink("e", "/etc"), file("e/canary", "x")), false},
		"symlink to its own name":       {tarOf(symlink("etc", "/etc"), file("etc/canary", "x")), true},
		"symlink chain":                 {tarOf(symlink("a", "b/.."), symlink("b", ".."), file("a/canary", "x")), false},
		"symlink loop":                  {tarOf(symlink("a", "b"), symlink("b", "a"), file("a/x", "x")), true},
		"symlink to itself":             {tarOf(symlink("a", "a"), file("a/x", "x")), true},
		"file over symlink":             {tarOf(symlink("s", "../canary"), file("s", "x")), false},
		"dir over symlink":              {tarOf(symlink("s", ".."), dir("s", 0o777), file("s/canary", "x")), false},
		"hard link up":                  {tarOf(hardlink("h", "../canary"), file("h", "x")), true},
		"hard link absolute":            {tarOf(hardlink("h", "/canary")), true},
		"hard link through symlink":     {tarOf(symlink("s", ".."), hardlink("h", "s/canary")), true},
		"hard link to symlink, write":   {tarOf(symlink("s", "../canary"), hardlink("h", "s"), file("h", "x")), false},
		"hard link to dir":              {tarOf(dir("d", 0o755), hardlink("h", "d")), true},
		"hard link into own place":      {tarOf(dir("d", 0o755), file("d/f", "x"), hardlink("d", "d/f")), true},
		"hard link to whiteout":         {tarOf(file("a/.wh.x", ""), hardlink("y", "a/x")), true},
		"whiteout of dot dot":           {tarOf(file(".wh...", "")), true},
		"whiteout of dot dot below":     {tarOf(dir("a", 0o755), file("a/.wh...", "")), true},
		"whiteout of dot":               {tarOf(file("a/.wh..", "")), true},
		"whiteout of nothing":           {tarOf(file("a/.wh.", "")), true},
		"whiteout as directory":         {tarOf(file(".wh.a/b", "")), true},
		"whiteout through symlink":      {tarOf(symlink("s", ".."), file("s/.wh.canary", "")), false},
		"opaque through symlink":        {tarOf(symlink("s", ".."), file("s/.wh..wh..opq", "")), false},
		"device through symlink":        {tarOf(symlink("s", ".."), device("s/canary", tar.TypeBlock, 8, 0)), false},
		"overlay redirect":              {tarOf(xattr(dir("d", 0o755), "trusted.overlay.redirect", "/etc")), false},
		"overlay metacopy":              {tarOf(xattr(file("f", "x"), "trusted.overlay.metacopy", "")), false},
		"selinux label":                 {tarOf(xattr(file("f", "x"), "security.selinux", "x")), false},
		"file as directory":             {tarOf(file("f", "x"), file("f/x", "x")), true},
		"root as file":                  {tarOf(symlink(".", "/etc")), true},
		"owner -1":                      {tarOf(owned(file("f", "x"), 1<<32-1)), true},
		"very deep":                     {tarOf(file(deep, "x")), true},
		"many deep implied directories": {tarOf(fan(maxDirPath - 100)...), true},
		"deeper than maxDepth":          {tarOf(file(strings.Repeat("d/", maxDepth+1)+"f", "x")), true},
		"as deep as maxDepth":           {tarOf(file(strings.Repeat("d/", maxDepth)+"f", "x")), false},
		"replaced deep directory":       {tarOf(file(strings.Repeat("d/", maxDepth)+"f", "x"), file("d", "x")), false},
		"links to links":                {tarOf(zigzag()...), true},
		"truncated":                     {tarOf(file("f", strings.Repeat("x", 5000)))[:2000], true},
		"garbage":                       {bytes.Repeat([]byte("garbage "), 200), true},
		"hole of 8 EiB":                 {hugeHole(t), true},
		"unknown type":                  {tarOf(member{Header: tar.Header{Typeflag: 'V', Name: "volume"}}), true},
	}
}

// fan is a long path with files in many directories below it, none of which has an
// entry of its own.
func fan(length int) []member {
	above := strings.Repeat(strings.Repeat("n", 200)+"/", length/201)
	var all []member
	for i := range maxImpliedBytes/len(above) + 1 {
		all = append(all, file(fmt.Sprint(above, i, "/f"), ""))
	}
	return all
}

// zigzag is a symlink that goes down and up a thousand times, and files behind a chain
// of forty of it.
func zigzag() []member {
	all := []member{dir("a", 0o755)}
	last := ""
	for i := range maxSymlinks - 1 {
		name := fmt.Sprint("s", i)
		all = append(all, symlink(name, strings.Repeat("a/../", 800)+last))
		last = name
	}
	for i := range 100 {
		all = append(all, file(fmt.Sprint(last, "/f", i), ""))
	}
	return all
}

// hugeHole is a PAX 1.0 sparse file of nearly 8 EiB in a tar of 2 KiB.
func hugeHole(t testing.TB) []byte {
	t.Helper()
	// archive/tar writes no sparse files: the records are put in by hand.
	body := "0\n" + strings.Repeat("\x00", 510)
	records := ""
	for _, kv := range []string{"GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.name=hole", fmt.Sprintf("GNU.sparse.realsize=%d", int64(1)<<62)} {
		n := len(kv) + 3
		for len(fmt.Sprintf("%d %s\n", n, kv)) != n {
			n++
		}
		records += fmt.Sprintf("%d %s\n", n, kv)
	}
	var buf bytes.Buffer
	plain := makeTar(t, file("pax", records))
	plain[156] = tar.TypeXHeader
	checksum(plain[:512])
	buf.Write(plain[:len(plain)-1024])
	buf.Write(makeTar(t, file("GNUSparseFile.0/hole", body)))
	return buf.Bytes()
}

// checksum makes a changed header valid again.
func checksum(header []byte) {
	copy(header[148:156], "        ")
	sum := 0
	for _, b := range header[:512] {
		sum += int(b)
	}
	copy(header[148:156], fmt.Sprintf("%06o\x00 ", sum))
}

// jail is a directory with a tree to extract into and things beside it that
// must not change.
type jail struct{ top, tree string }

func newJail(t testing.TB) jail {
	t.Helper()
	top := t.TempDir()
	j := jail{top, filepath.Join(top, "tree")}
	if err := os.Mkdir(j.tree, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(top, "canary"), []byte("alive"), 0o600); err != nil {
		t.Fatal(err)
	}
	return j
}

// check fails when anything outside of the tree was touched.
func (j jail) check(t testing.TB) {
	t.Helper()
	if got := names(t, j.top); got != "canary tree" {
		t.Fatalf("beside the tree is now: %s", got)
	}
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(j.top, "canary"), &st); err != nil || st.Mode != unix.S_IFREG|0o600 || st.Nlink != 1 {
		t.Fatalf("the canary has mode %o, %d links: %v", st.Mode, st.Nlink, err)
	}
	if got := readFile(t, filepath.Join(j.top, "canary")); got != "alive" {
		t.Fatalf("the canary is %q", got)
	}
	buf := make([]byte, 1024)
	if n, err := unix.Lgetxattr(j.top, xattrOpaque, buf); err == nil {
		t.Fatalf("the directory above is opaque: %q", buf[:n])
	}
	if _, err := os.Lstat("/etc/canary"); err == nil {
		t.Fatal("/etc/canary exists")
	}
	if _, err := os.Lstat("/canary"); err == nil {
		t.Fatal("/canary exists")
	}
}

func TestHostileLayers(t *testing.T) {
	leak.NeedRoot(t)
	for name, layer := range hostile(t) {
		t.Run(name, func(t *testing.T) {
			j := newJail(t)
			_, err := Extract(context.Background(), j.tree, bytes.NewReader(layer.data), int64(len(layer.data)), plenty, endless)
			j.check(t)
			if layer.refused && !errors.Is(err, ErrInvalidTar) {
				t.Errorf("got %v, want ErrInvalidTar", err)
			}
			if !layer.refused && err != nil {
				t.Errorf("not extracted: %v", err)
			}
		})
	}
}

// TestHostileAttributes: nothing that speaks to overlayfs or to the node's
// security comes from an image.
func TestHostileAttributes(t *testing.T) {
	leak.NeedRoot(t)
	m := dir("d", 0o755)
	m.PAXRecords = map[string]string{
		"SCHILY.xattr.trusted.overlay.redirect": "/etc",
		"SCHILY.xattr.trusted.overlay.opaque":   "y",
		"SCHILY.xattr.security.selinux":         "label",
		"SCHILY.xattr.user.mine":                "kept",
	}
	into, _ := mustExtract(t, m)
	if got, want := attrs(t, filepath.Join(into, "d")), `user.mine="kept"`; got != want {
		t.Errorf("attributes are %s, want %s", got, want)
	}
}

func TestSymlinksLeadInsideTheTree(t *testing.T) {
	leak.NeedRoot(t)
	into, _ := mustExtract(t,
		dir("run", 0o755), dir("var", 0o755), symlink("var/run", "/run"), file("var/run/pid", "1"),
		symlink("up", "../../../var"), file("up/log", "2"),
	)
	for name, want := range map[string]string{"run/pid": "1", "var/log": "2"} {
		if got := readFile(t, filepath.Join(into, name)); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
}

func TestCancelled(t *testing.T) {
	leak.NeedRoot(t)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	data := makeTar(t, file("f", "x"))
	if _, err := Extract(ctx, t.TempDir(), bytes.NewReader(data), int64(len(data)), plenty, endless); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
}

// FuzzExtract: whatever the bytes, nothing outside of the tree changes, and
// what cannot be extracted is an error.
func FuzzExtract(f *testing.F) {
	for _, layer := range hostile(f) {
		f.Add(layer.data)
	}
	f.Add(makeTar(f, dir("a", 0o755), file("a/f", "x"), hardlink("g", "a/f"), symlink("s", "a"), file("s/.wh.f", ""), file("a/.wh..wh..opq", "")))
	f.Fuzz(func(t *testing.T, data []byte) {
		leak.NeedRoot(t)
		j := newJail(t)
		_, _ = Extract(context.Background(), j.tree, bytes.NewReader(data), int64(len(data)), plenty, endless)
		j.check(t)
	})
}
