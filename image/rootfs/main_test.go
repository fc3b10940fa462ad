package rootfs

import (
	"archive/tar"
	"bytes"
	"context"
	"os"
	"strings"
	"testing"

	"berth/test/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

// member is one entry of a test's tar.
type member struct {
	tar.Header
	body string
}

func dir(name string, mode int64) member {
	return member{Header: tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: mode}}
}

func file(name, body string) member {
	return member{Header: tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644}, body: body}
}

func symlink(name, target string) member {
	return member{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}}
}

func hardlink(name, target string) member {
	return member{Header: tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target}}
}

func device(name string, kind byte, major, minor int64) member {
	return member{Header: tar.Header{Typeflag: kind, Name: name, Mode: 0o620, Devmajor: major, Devminor: minor}}
}

func makeTar(t testing.TB, members ...member) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, m := range members {
		m.Size = int64(len(m.body))
		if err := w.WriteHeader(&m.Header); err != nil {
			t.Fatalf("header of %q: %v", m.Name, err)
		}
		if _, err := w.Write([]byte(m.body)); err != nil {
			t.Fatalf("body of %q: %v", m.Name, err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// extract extracts data into a new directory.
func extract(t testing.TB, data []byte) (string, Tree, error) {
	t.Helper()
	into := t.TempDir()
	tree, err := Extract(context.Background(), into, bytes.NewReader(data), int64(len(data)), plenty, endless)
	return into, tree, err
}

// mustExtract is extract of a layer that is in order.
func mustExtract(t testing.TB, members ...member) (string, Tree) {
	t.Helper()
	into, tree, err := extract(t, makeTar(t, members...))
	if err != nil {
		t.Fatal(err)
	}
	return into, tree
}

func readFile(t testing.TB, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func names(t testing.TB, path string) string {
	t.Helper()
	entries, err := os.ReadDir(path)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return strings.Join(all, " ")
}

func plenty() error { return nil }

func endless(int) error { return nil }
