package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"berth/test/leak"
)

// smallStore opens a store on a filesystem of its own.
func smallStore(t *testing.T, options string) *Store {
	t.Helper()
	leak.NeedRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return openStore(t, filepath.Join(dir, "berth"))
}

// TestFullDisk: a pull that does not fit is a clear error, leaves nothing, and
// what is there stays usable.
func TestFullDisk(t *testing.T) {
	many := make([]string, 0, 2000)
	for i := range 1000 {
		many = append(many, fmt.Sprint("many/", i), "")
	}
	tests := []struct {
		name    string
		options string
		layer   []byte
		fill    int64 // bytes taken by somebody else
	}{
		{"the tar does not fit", "size=16m", files("big", noise(20<<20, "")), 0},
		{"the tree does not fit", "size=24m", files("big", noise(14<<20, "")), 0},
		{"the disk is full before", "size=16m", files("big", noise(1<<20, "")), 17 << 20},
		{"not enough inodes", "size=64m,nr_inodes=300", files(many...), 0},
		{"a bomb", "size=16m", files("zeros", string(make([]byte, 100<<20))), 0},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			f, s := newFake(t), smallStore(t, test.options)
			f.image("small", "v1", spec{layers: [][]byte{files("f", "small")}})
			f.image("big", "v1", spec{layers: [][]byte{files("x", "x"), test.layer}})
			small := pull(t, s, f.host()+"/small:v1")
			running := newRoot(t, s, "running", small)
			if test.fill > 0 {
				fill(t, filepath.Join(filepath.Dir(s.Dir), "fill"), test.fill)
			}
			_, err := s.Pull(context.Background(), Pull{Ref: f.host() + "/big:v1"})
			var space *SpaceError
			if !errors.As(err, &space) || !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), s.Dir) {
				t.Errorf("got %v, want a SpaceError that names %s", err, s.Dir)
			}
			s.check(t)
			if n := len(must(list(s.path(layersDir)))); n != 1 {
				t.Errorf("%d layers are left", n)
			}
			if got := readAt(t, running, "f"); got != "small" {
				t.Errorf("the running container reads %q", got)
			}
			if test.fill == 0 {
				check(os.WriteFile(filepath.Join(running, "new"), []byte("x"), 0o600))
				f.image("next", "v1", spec{layers: [][]byte{files("g", "next")}})
				pull(t, s, f.host()+"/next:v1")
			}
			check(unix.Unmount(running, 0))
			removeRoot(t, s, "running")
		})
	}
}

// fill writes a file until n bytes are there or the disk is full.
func fill(t *testing.T, path string, n int64) {
	t.Helper()
	file := must(os.Create(path))
	defer file.Close()
	for buf := make([]byte, 64<<10); n > 0; n -= int64(len(buf)) {
		if _, err := file.Write(buf); errors.Is(err, syscall.ENOSPC) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
	}
}
