package runner

import (
	"bytes"
	"fmt"
	"io"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"berth/oci/keeper"

	"golang.org/x/sys/unix"
)

// Guards against output that is on its way when a process has ended: a terminal
// shows 4 KiB at a time of what it has taken in.
func TestDrain(t *testing.T) {
	text := bytes.Repeat([]byte("a line of sixteen"), 600)
	for name, open := range map[string]func(*testing.T) (ours, theirs *os.File){
		keeper.FileTTY: openTerminal, keeper.FileStdout: openPipe,
	} {
		ours, theirs := open(t)
		if _, err := theirs.Write(text); err != nil {
			t.Fatal(err)
		}
		o, log := newTestOutput(t)
		o.add("id", []string{name, keeper.FileLog}, []*os.File{ours, log})
		o.close(o.drain("id"))
		b, err := os.ReadFile(log.Name())
		if err != nil {
			t.Fatal(err)
		}
		var got []byte
		for line := range bytes.Lines(b) {
			_, part, _ := bytes.Cut(line, []byte(" stdout P "))
			got = append(got, bytes.TrimSuffix(part, []byte("\n"))...)
		}
		if !bytes.Equal(got, text) {
			t.Errorf("%s: %d bytes in the log, want %d", name, len(got), len(text))
		}
	}
}

func openPipe(t *testing.T) (ours, theirs *os.File) {
	t.Helper()
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	ours, theirs = os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs")
	t.Cleanup(func() { theirs.Close() })
	return ours, theirs
}

func openTerminal(t *testing.T) (master, peer *os.File) {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	master = os.NewFile(uintptr(fd), "master")
	t.Cleanup(func() { master.Close() })
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	slave, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		t.Fatal(errno)
	}
	peer = os.NewFile(slave, "peer")
	t.Cleanup(func() { peer.Close() })
	return master, peer
}

// newTestOutput has no loop; the log is its caller's.
func newTestOutput(t *testing.T) (*output, *os.File) {
	t.Helper()
	dir := t.TempDir()
	o, err := newOutput(openTestJournal(t, filepath.Join(dir, "journal")), log.New(io.Discard, "", 0))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(o.epoll) })
	f, err := os.OpenFile(filepath.Join(dir, "log"), os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return o, f
}

// readerEnv in the environment makes this binary read many streams in that
// directory, and say what that took.
const readerEnv = "BERTH_TEST_READER"

const manyStreams = 400

// Guards against a goroutine and a buffer for each stream (142 MB for 2,000).
func TestOneGoroutineAndBufferForAllStreams(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), readerEnv+"="+t.TempDir())
	out, err := cmd.CombinedOutput()
	var goroutines, bytes int
	if _, serr := fmt.Sscan(string(out), &goroutines, &bytes); err != nil || serr != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if goroutines > 1 {
		t.Errorf("%d goroutines for %d streams, want 1", goroutines, manyStreams)
	}
	if perStream := bytes / manyStreams; perStream > 8<<10 {
		t.Errorf("%d bytes of memory for a stream", perStream)
	}
}

// readMany prints how many goroutines and bytes of memory it takes to move a
// chunk of each of manyStreams streams to a log.
func readMany() {
	dir := os.Getenv(readerEnv)
	check := func(err error) {
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
	j, err := openJournal(filepath.Join(dir, "journal"))
	check(err)
	o, err := newOutput(j, log.New(os.Stderr, "", 0))
	check(err)
	var writers []*os.File
	chunk := bytes.Repeat([]byte("x"), chunkSize-1)
	before, goroutines := memory(), runtime.NumGoroutine()
	for i := range manyStreams {
		var fds [2]int
		check(unix.Pipe2(fds[:], unix.O_CLOEXEC))
		f, err := os.OpenFile(filepath.Join(dir, "log"), os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
		check(err)
		id := fmt.Sprint(i)
		o.add(id, []string{keeper.FileStdout, keeper.FileLog}, []*os.File{os.NewFile(uintptr(fds[0]), id), f})
		o.resume(id)
		writers = append(writers, os.NewFile(uintptr(fds[1]), id))
	}
	go o.loop()
	for _, w := range writers {
		_, err := w.Write(chunk)
		check(err)
	}
	for again := time.NewTicker(time.Millisecond); ; <-again.C {
		st, err := os.Stat(filepath.Join(dir, "log"))
		check(err)
		if st.Size() >= manyStreams*chunkSize {
			break
		}
	}
	goroutines = runtime.NumGoroutine() - goroutines
	fmt.Println(goroutines, memory()-before)
}

// memory is what the heap and the stacks take, garbage apart.
func memory() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}
