package oci

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// Guards against a log directory that becomes a link while berthd and the keeper
// are dead: the log of a container that goes on would be written where the link
// leads.
func TestReopenLogFollowsNoNewLink(t *testing.T) {
	for name, depth := range map[string]string{"the log's directory": "pod/container", "one above it": "pod", "the log itself": "pod/container/log"} {
		base, run, evil := t.TempDir(), t.TempDir(), t.TempDir()
		dir := filepath.Join(base, "pod/container")
		for _, d := range []string{dir, filepath.Join(evil, "container")} {
			if err := os.MkdirAll(d, 0o700); err != nil {
				t.Fatal(err)
			}
		}
		log, err := OpenLog(dir, "log")
		if err != nil {
			t.Fatal(err)
		}
		if err := linkLog(run, log); err != nil {
			t.Fatal(err)
		}
		log.Close()
		at := filepath.Join(base, depth)
		if err := os.Rename(at, at+".old"); err != nil {
			t.Fatal(err)
		}
		target := evil
		if depth == "pod/container/log" {
			target = filepath.Join(evil, "log")
		}
		if err := os.Symlink(target, at); err != nil {
			t.Fatal(err)
		}
		if f, err := reopenLog(run); !errors.Is(err, unix.ELOOP) {
			t.Errorf("%s is a link: %v, want ELOOP", name, err)
			if err == nil {
				f.Close()
			}
		}
		for _, made := range []string{"log", "container/log"} {
			if _, err := os.Lstat(filepath.Join(evil, made)); err == nil {
				t.Errorf("%s is a link: %s was made behind it", name, made)
			}
		}
	}
}

// A node may have its logs behind a link of its own.
func TestReopenLogBehindAnOldLink(t *testing.T) {
	base, run := t.TempDir(), t.TempDir()
	if err := os.MkdirAll(filepath.Join(base, "disk"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("disk", filepath.Join(base, "logs")); err != nil {
		t.Fatal(err)
	}
	log, err := OpenLog(filepath.Join(base, "logs"), "log")
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	if err := linkLog(run, log); err != nil {
		t.Fatal(err)
	}
	again, err := reopenLog(run)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	a, _ := log.Stat()
	if b, _ := again.Stat(); !os.SameFile(a, b) {
		t.Error("another file was opened")
	}
}
