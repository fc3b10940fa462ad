package runner

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"berth/oci/keeper"

	"golang.org/x/sys/unix"
)

// A container may do anything with its end of a stream between the moment when the
// runner sees bytes there and the one when it reads them. Whatever it does, the runner
// does not wait for it: another container's lines are in their log.
func TestThievesOfOutput(t *testing.T) {
	empty := func(f *os.File) {
		b := make([]byte, 1<<20)
		thief, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err == nil {
			_, _ = unix.Read(thief, b)
			unix.Close(thief)
		}
	}
	for name, attack := range map[string]struct {
		tty  bool
		once func(t *testing.T, theirs *os.File) // before the runner takes the stream up
		each func(theirs *os.File)               // after it has seen that there are bytes
	}{
		"reads its output back": {each: empty},
		"reads a part of it back": {each: func(f *os.File) {
			thief, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
			if err == nil {
				_, _ = unix.Read(thief, make([]byte, 3))
				unix.Close(thief)
			}
		}},
		"makes the open file that it was given a blocking one": {
			once: func(_ *testing.T, f *os.File) { _ = unix.SetNonblock(int(f.Fd()), true) },
			each: func(f *os.File) { _ = unix.SetNonblock(int(f.Fd()), false); empty(f) },
		},
		"splices it away": {each: func(f *os.File) {
			null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
			if err == nil {
				_, _ = unix.Splice(int(f.Fd()), nil, int(null.Fd()), nil, 1<<20, unix.SPLICE_F_NONBLOCK)
				null.Close()
			}
		}},
		"holds a reader that wakes first": {once: func(t *testing.T, f *os.File) {
			thief, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), os.O_RDONLY|unix.O_NONBLOCK, 0)
			if err != nil {
				t.Fatal(err)
			}
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				_, _ = io.Copy(io.Discard, thief)
			}()
			t.Cleanup(func() { thief.Close(); <-ended })
		}},
		"makes its pipe small": {each: func(f *os.File) { empty(f); _, _ = unix.FcntlInt(f.Fd(), unix.F_SETPIPE_SZ, 4096) }},
		"flushes its terminal": {tty: true, each: func(f *os.File) { _ = unix.IoctlSetInt(int(f.Fd()), unix.TCFLSH, unix.TCIOFLUSH) }},
		"types into its terminal and flushes": {tty: true, each: func(f *os.File) {
			b := byte('x')
			_ = unix.IoctlSetPointerInt(int(f.Fd()), unix.TIOCSTI, int(b))
			_ = unix.IoctlSetInt(int(f.Fd()), unix.TCFLSH, unix.TCIOFLUSH)
		}},
		"stops its terminal":    {tty: true, each: func(f *os.File) { _ = unix.IoctlSetInt(int(f.Fd()), unix.TCXONC, unix.TCOOFF) }},
		"hangs its terminal up": {tty: true, each: func(f *os.File) { _ = unix.IoctlSetInt(int(f.Fd()), unix.TIOCVHANGUP, 0) }},
	} {
		t.Run(name, func(t *testing.T) {
			o, log := newTestOutput(t)
			kind, ours, theirs := keeper.FileStdout, (*os.File)(nil), (*os.File)(nil)
			if attack.tty {
				kind = keeper.FileTTY
				ours, theirs = openTerminal(t)
			} else {
				ours, theirs = openFIFO(t)
			}
			if attack.once != nil {
				attack.once(t, theirs)
			}
			take(t, o, "thief", kind, ours, nil)
			honestOurs, honest := openFIFO(t)
			take(t, o, "honest", keeper.FileStdout, honestOurs, log)
			if attack.each != nil {
				keeper.Step = func(step string) {
					if step == "chunk seen" {
						attack.each(theirs)
					}
				}
			}
			stop, stopped := make(chan struct{}), make(chan struct{})
			go func() {
				defer close(stopped)
				r, events := o.newReader(o.takeSlot(0), time.Hour), make([]unix.EpollEvent, 64)
				for {
					select {
					case <-stop:
						return
					default:
						_, _ = r.turn(events, 20)
					}
				}
			}()
			t.Cleanup(func() {
				close(stop)
				<-stopped
				keeper.Step = nil
			})
			bait := make(chan struct{})
			t.Cleanup(func() { close(bait) })
			go func() { // its own writes may be stopped
				for range bait {
					_, _ = theirs.Write([]byte("bait of the thief\n"))
				}
			}()
			for i := range 20 {
				select {
				case bait <- struct{}{}:
				default:
				}
				line := fmt.Sprintf("line %d\n", i)
				if _, err := honest.WriteString(line); err != nil {
					t.Fatal(err)
				}
				awaitText(t, log.Name(), " "+line)
			}
		})
	}
}

// openFIFO makes a FIFO as a container has it: both files are read-write.
func openFIFO(t *testing.T) (ours, theirs *os.File) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	theirs = os.NewFile(uintptr(fd), "theirs")
	t.Cleanup(func() { theirs.Close() })
	if fd, err = unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fd), "ours"), theirs
}

// take makes o read a stream and write it to log, nil to drop it.
func take(t *testing.T, o *output, id, kind string, stream, log *os.File) {
	t.Helper()
	names, files := []string{kind}, []*os.File{stream}
	if log != nil {
		fd, err := unix.FcntlInt(log.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		names, files = append(names, keeper.FileLog), append(files, os.NewFile(uintptr(fd), log.Name()))
	}
	o.add(id, names, files)
	o.resume(id)
	t.Cleanup(func() { o.drop(id) })
}

// awaitText waits until the file ends with text.
func awaitText(t *testing.T, path, text string) {
	t.Helper()
	timeout := time.After(5 * time.Second)
	again := time.NewTicker(time.Millisecond)
	defer again.Stop()
	for {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.HasSuffix(b, []byte(text)) {
			return
		}
		select {
		case <-again.C:
		case <-timeout:
			t.Fatalf("the log lacks %q at its end: %q", text, b)
		}
	}
}

// A terminal that a process has hung up is no reason to look again and again, and is
// read on when a process opens it anew.
func TestTerminalThatWasHungUp(t *testing.T) {
	o, log := newTestOutput(t)
	master, peer := openTerminal(t)
	number, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	take(t, o, "id", keeper.FileTTY, master, log)
	if err := unix.IoctlSetInt(int(peer.Fd()), unix.TIOCVHANGUP, 0); err != nil {
		t.Fatal(err)
	}
	r, events := o.newReader(o.takeSlot(0), time.Hour), make([]unix.EpollEvent, 8)
	rests := false
	for range 5 {
		n, err := r.turn(events, 0)
		if err != nil {
			t.Fatal(err)
		}
		rests = n == 0
	}
	if !rests {
		t.Error("the runner looks at it again and again")
	}
	anew, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer anew.Close()
	for _, line := range []string{"first", "second"} {
		if _, err := anew.WriteString(line); err != nil {
			t.Fatal(err)
		}
		for range 5 {
			if _, err := r.turn(events, 1000); err != nil {
				t.Fatal(err)
			}
			if b, _ := os.ReadFile(log.Name()); strings.Contains(string(b), line) {
				break
			}
		}
		if b, _ := os.ReadFile(log.Name()); !strings.Contains(string(b), line) {
			t.Errorf("the log lacks %q: %q", line, b)
		}
	}
}
