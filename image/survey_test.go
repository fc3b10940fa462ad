package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/test/leak"
)

// du is what du(1) says of a tree.
func du(t *testing.T, path string) (bytes, inodes uint64) {
	t.Helper()
	for _, what := range []struct {
		flags []string
		to    *uint64
	}{{[]string{"-s", "--block-size=1"}, &bytes}, {[]string{"-s", "--inodes"}, &inodes}} {
		out, err := exec.Command(leak.NeedTool(t, "du"), append(what.flags, path)...).Output()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Sscan(string(out), what.to); err != nil {
			t.Fatal(err)
		}
	}
	return bytes, inodes
}

// nest makes directories in each other, below dir, and a file in the last: deeper
// than a path can be long.
func nest(t *testing.T, dir, name string, depth int) {
	t.Helper()
	at := must(unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0))
	for range depth {
		check(unix.Mkdirat(at, name, 0o700))
		below := must(unix.Openat(at, name, unix.O_RDONLY|unix.O_DIRECTORY, 0))
		unix.Close(at)
		at = below
	}
	f := os.NewFile(uintptr(must(unix.Openat(at, "f", unix.O_WRONLY|unix.O_CREAT, 0o600))), "f")
	must(f.WriteString(strings.Repeat("x", 10_000)))
	check(f.Close())
	unix.Close(at)
}

func TestWalkIsDu(t *testing.T) {
	leak.NeedRoot(t)
	for name, fill := range map[string]func(t *testing.T, dir string){
		"empty": func(*testing.T, string) {},
		"files": func(t *testing.T, dir string) {
			for i := range 600 { // more than are read at once
				check(os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), make([]byte, i*100), 0o600))
			}
		},
		"several names": func(t *testing.T, dir string) {
			check(os.WriteFile(filepath.Join(dir, "a"), make([]byte, 50_000), 0o600))
			check(os.Mkdir(filepath.Join(dir, "d"), 0o700))
			for i := range 6 {
				check(os.Link(filepath.Join(dir, "a"), filepath.Join(dir, "d", fmt.Sprint(i))))
			}
		},
		"sparse": func(t *testing.T, dir string) {
			check(os.WriteFile(filepath.Join(dir, "a"), nil, 0o600))
			check(os.Truncate(filepath.Join(dir, "a"), 1<<40))
		},
		"links and nodes": func(t *testing.T, dir string) {
			check(os.Symlink("/", filepath.Join(dir, "root")))
			check(os.Symlink(".", filepath.Join(dir, "self")))
			check(os.Symlink(strings.Repeat("x", 200), filepath.Join(dir, "long")))
			check(unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600))
			check(unix.Mknod(filepath.Join(dir, "whiteout"), unix.S_IFCHR, 0))
		},
		"deeper than a path": func(t *testing.T, dir string) { nest(t, dir, strings.Repeat("d", 200), 50) },
		"deeper than files may be open": func(t *testing.T, dir string) {
			var was unix.Rlimit
			check(unix.Getrlimit(unix.RLIMIT_NOFILE, &was))
			t.Cleanup(func() { check(unix.Setrlimit(unix.RLIMIT_NOFILE, &was)) })
			nest(t, dir, "d", 200)
			check(unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 100, Max: was.Max}))
		},
		"not to be read": func(t *testing.T, dir string) {
			check(os.MkdirAll(filepath.Join(dir, "a", "b"), 0o700))
			check(os.Chmod(filepath.Join(dir, "a"), 0))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			fill(t, dir)
			bytes, inodes, err := walk(t.Context(), dir)
			if wantBytes, wantInodes := du(t, dir); err != nil || bytes != wantBytes || inodes != wantInodes {
				t.Errorf("%d bytes, %d inodes, %v; du says %d and %d", bytes, inodes, err, wantBytes, wantInodes)
			}
		})
	}
}

func TestWalkEndsWithItsContext(t *testing.T) {
	leak.NeedRoot(t)
	dir := t.TempDir()
	check(os.Mkdir(filepath.Join(dir, "d"), 0o700))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := walk(ctx, dir); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// asked asks for id until the answer is right.
func asked(t *testing.T, s *Store, id string, right func(Usage) bool) Usage {
	t.Helper()
	deadline := time.After(10 * time.Second)
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	for {
		u := s.RootUsage(id)
		if u.Mountpoint != s.Dir {
			t.Fatalf("mountpoint %q", u.Mountpoint)
		}
		if right(u) {
			return u
		}
		select {
		case <-again.C:
		case <-deadline:
			t.Fatalf("still %+v", u)
		}
	}
}

func TestRootUsage(t *testing.T) {
	f, s := newFake(t), newStore(t)
	f.image("a", "v1", spec{layers: [][]byte{files("f", strings.Repeat("x", 100_000))}})
	img := pull(t, s, f.host()+"/a:v1")
	one := newRoot(t, s, "one", img)
	newRoot(t, s, "two", img)
	if u := s.RootUsage("one"); u.At.IsZero() || u.Bytes != 0 || u.Inodes != 1 {
		t.Errorf("of a new layer: %+v", u)
	}
	s.survey.pause = 0
	check(os.WriteFile(filepath.Join(one, "mine"), make([]byte, 1<<20), 0o600))
	check(os.Chmod(filepath.Join(one, "f"), 0o600)) // copied up whole
	upper := s.path(containersDir, "one", "upper")
	bytes, inodes := du(t, upper)
	if bytes < 1<<20+100_000 {
		t.Fatalf("du says %d", bytes)
	}
	asked(t, s, "one", func(u Usage) bool { return u.Bytes == bytes && u.Inodes == inodes && inodes == 3 })
	check(os.Remove(filepath.Join(one, "mine")))
	bytes, _ = du(t, upper)
	asked(t, s, "one", func(u Usage) bool { return u.Bytes == bytes && u.Inodes == 2 })
	other := asked(t, s, "two", func(u Usage) bool { return u.Bytes > 0 && u.Inodes == 1 }) // its directory
	if all := s.RootsUsage(); all.Bytes != bytes+other.Bytes || all.Inodes != 3 || all.At.IsZero() || all.Mountpoint != s.Dir {
		t.Errorf("together %+v, want %d bytes", all, bytes+other.Bytes)
	}
	if images := must(s.Usage(t.Context())); images.At.IsZero() || images.Bytes < 100_000 {
		t.Errorf("images %+v", images)
	}
	// The next daemon knows nothing before it has looked.
	s = reopen(t, s)
	if u := s.RootUsage("one"); !u.At.IsZero() {
		t.Errorf("after a restart: %+v", u)
	}
	asked(t, s, "one", func(u Usage) bool { return u.Bytes == bytes && u.Inodes == 2 })
	if u := s.RootUsage("none"); !u.At.IsZero() {
		t.Errorf("of a container without a layer: %+v", u)
	}
	check(unix.Unmount(one, 0))
	removeRoot(t, s, "one")
	if u := s.RootUsage("one"); !u.At.IsZero() || s.survey.known["one"] != nil || s.survey.known["none"] != nil {
		t.Errorf("after its removal: %+v", u)
	}
}

// Nobody waits for a walk, however often it is asked for: it is made at most once
// in a pause, which grows with what a walk takes.
func TestSurveyIsRateLimited(t *testing.T) {
	s := newSurvey()
	s.known["new"] = &measured{usage: Usage{At: time.Now()}}
	s.known["old"] = &measured{usage: Usage{At: time.Now().Add(-surveyPause)}}
	s.known["large"] = &measured{usage: Usage{At: time.Now().Add(-surveyPause)}, took: surveyPause}
	s.known["large and old"] = &measured{usage: Usage{At: time.Now().Add(-surveyShare * surveyPause)}, took: surveyPause}
	for range 3 {
		for _, id := range []string{"new", "old", "large", "large and old"} {
			s.ask(id)
		}
	}
	if got := []string{s.next(), s.next(), s.next()}; got[0] != "old" || got[1] != "large and old" || got[2] != "" {
		t.Errorf("due are %q", got)
	}
}

// Where nothing was written, nothing is walked.
func TestSurveySkipsWhatNobodyWrote(t *testing.T) {
	leak.NeedRoot(t)
	dir := t.TempDir()
	// A filesystem that nobody else writes to.
	if err := unix.Mount("berth", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { check(unix.Unmount(dir, 0)) })
	m := measured{}
	update := func(what string, walks bool) {
		t.Helper()
		at, bytes := m.usage.At, m.usage.Bytes
		m.usage.Bytes = 42 // what a walk would put right
		if err := m.update(t.Context(), dir, filepath.Join(dir, "none")); err != nil {
			t.Fatal(err)
		}
		if walked := m.usage.Bytes != 42; walked != walks {
			t.Errorf("%s: walked %v", what, walked)
		} else if !walked {
			m.usage.Bytes = bytes
		}
		if !m.usage.At.After(at) {
			t.Errorf("%s: it is not newer", what)
		}
	}
	update("at first", true)
	update("unchanged", false)
	check(os.WriteFile(filepath.Join(dir, "f"), make([]byte, 8192), 0o600))
	update("written", true)
	if m.usage.Bytes != 8192 || m.usage.Inodes != 2 {
		t.Errorf("%+v", m.usage)
	}
	update("unchanged", false)
	check(os.WriteFile(filepath.Join(dir, "empty"), nil, 0o600))
	update("an inode more", true)
	m.walked = m.walked.Add(-surveyFaith)
	update("not walked for long", true)
}

// A layer that goes while it is measured is no error, and nothing of it is
// remembered.
func TestRootUsageOfALayerThatGoes(t *testing.T) {
	f, s := newFake(t), newStore(t)
	f.image("a", "v1", spec{layers: [][]byte{files("f", "x")}})
	img := pull(t, s, f.host()+"/a:v1")
	s.survey.pause = 0
	ctx, cancel := context.WithCancel(t.Context())
	var asking sync.WaitGroup
	asking.Go(func() {
		for ctx.Err() == nil {
			s.RootUsage("one")
			s.RootsUsage()
		}
	})
	for range 50 {
		root, err := s.Root(t.Context(), "one", img, nil)
		if err != nil {
			t.Fatal(err)
		}
		check(root.Close())
		check(os.MkdirAll(s.path(containersDir, "one", "upper", "a", "b", "c"), 0o700))
		removeRoot(t, s, "one")
	}
	cancel()
	asking.Wait()
	if len(s.survey.known) > 0 {
		t.Errorf("%d are known", len(s.survey.known))
	}
}
