package keeper

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"berth/oci/cgroup"
	"berth/test/leak"
)

// A process is held from the runtime's first file on: it may end before the
// runtime has told its pid.
func TestBirthIsSeenBeforeThePidIsTold(t *testing.T) {
	leak.NeedRoot(t)
	s := Spec{ID: "c", Dir: t.TempDir(), Cgroup: "/berth-birth-test", State: filepath.Join(t.TempDir(), "c")}
	cmd := exec.Command("sh", "-c", "read x; exit 5")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	t.Cleanup(func() {
		if err := cgroup.Remove(s.Cgroup); err != nil {
			t.Error(err)
		}
	})
	if err := cgroup.Make(s.Cgroup, pid); err != nil {
		t.Fatal(err)
	}
	type birth struct {
		name  string
		pidfd *os.File
	}
	found := make(chan birth, mostNewborn)
	stop, err := watchBirth(s, func(name string, pidfd *os.File) { found <- birth{name, pidfd} })
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	if err := os.Mkdir(s.State, 0o700); err != nil { // as the runtime begins
		t.Fatal(err)
	}
	p := &process{State: State{Spec: s}}
	defer p.close()
	b := <-found
	p.hold(b.name, b.pidfd)
	stdin.Close()
	defer cmd.Wait() // its error is the code
	p.own(pid)
	own := p.file(FilePidfd)
	if own == nil || len(p.files) != 1 {
		t.Fatalf("of pid %d, %q is held, and %d files", pid, b.name, len(p.files))
	}
	if e, ok := awaitExit(own, pid); !ok || e.Code != 5 {
		t.Errorf("exit code %d, %v, want 5", e.Code, ok)
	}
}
