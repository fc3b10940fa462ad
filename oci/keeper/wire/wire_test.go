package wire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"berth/test/leak"

	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { leak.Main(m) }

// pair connects two peers; handle serves the requests of the first.
func pair(t *testing.T, handle func(*Request)) (asks, serves *Peer) {
	t.Helper()
	a, b := conns(t)
	asks, serves = NewPeer(a), NewPeer(b)
	var running sync.WaitGroup
	running.Go(func() { asks.Serve(func(r *Request) { CloseAll(r.Files) }) })
	running.Go(func() { serves.Serve(handle) })
	t.Cleanup(func() {
		asks.Close()
		serves.Close()
		running.Wait()
	})
	return asks, serves
}

func conns(t *testing.T) (a, b *Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]*Conn
	for i, fd := range fds {
		if ends[i], err = FileConn(os.NewFile(uintptr(fd), "socket")); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ends[i].Close() })
	}
	return ends[0], ends[1]
}

// patience is how long what has to come may take.
const patience = 10 * time.Second

// awaitEnd reads from a pipe whose write ends are to be closed.
func awaitEnd(r *os.File) error {
	_ = r.SetReadDeadline(time.Now().Add(patience))
	if n, err := r.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		return fmt.Errorf("read %d bytes, %w, instead of the end", n, err)
	}
	return nil
}

// echo replies with the request's body and files.
func echo(r *Request) {
	var body any
	err := r.Decode(&body)
	r.Reply(body, err, r.Files...)
	CloseAll(r.Files)
}

func TestCallByPath(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := Dial(path)
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	asks, serves := NewPeer(c), NewPeer(NewConn(accepted))
	var running sync.WaitGroup
	running.Go(func() { asks.Serve(func(*Request) {}) })
	running.Go(func() { serves.Serve(echo) })
	var got string
	if _, err := asks.Call(t.Context(), "echo", "hello", &got); err != nil || got != "hello" {
		t.Errorf("got %q, %v", got, err)
	}
	asks.Close()
	running.Wait()
	if _, err := Dial(filepath.Join(t.TempDir(), "nobody")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("dial nobody: %v", err)
	}
}

func TestFilesGoBothWays(t *testing.T) {
	asks, _ := pair(t, echo)
	var sent []*os.File
	for i := range MaxFiles {
		f, err := os.Create(filepath.Join(t.TempDir(), "file"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		fmt.Fprint(f, i)
		sent = append(sent, f)
	}
	got, err := asks.Call(t.Context(), "echo", nil, nil, sent...)
	if err != nil || len(got) != len(sent) {
		t.Fatalf("%d files, %v, want %d", len(got), err, len(sent))
	}
	defer CloseAll(got)
	for i, f := range got {
		b := make([]byte, 10)
		n, err := f.ReadAt(b, 0)
		if string(b[:n]) != fmt.Sprint(i) {
			t.Errorf("file %d holds %q, %v", i, b[:n], err)
		}
		flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFD, 0)
		if err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("file %d would be inherited: %v", i, err)
		}
	}
}

// A pipe in non-blocking mode, which os.Pipe makes, arrives as it was sent: the
// mode is the open file's, not the descriptor's.
func TestSendLeavesFilesAsTheyAre(t *testing.T) {
	asks, _ := pair(t, echo)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	got, err := asks.Call(t.Context(), "echo", nil, nil, w)
	if err != nil {
		t.Fatal(err)
	}
	defer CloseAll(got)
	raw, err := w.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	_ = raw.Control(func(fd uintptr) {
		flags, err := unix.FcntlInt(fd, unix.F_GETFL, 0)
		if err != nil || flags&unix.O_NONBLOCK == 0 {
			t.Errorf("flags %#x, %v: switched to blocking mode", flags, err)
		}
	})
}

func TestRefusal(t *testing.T) {
	asks, _ := pair(t, func(r *Request) { r.Reply("ignored", errors.New("the reason")) })
	var remote *Remote
	if _, err := asks.Call(t.Context(), "ask", nil, nil); !errors.As(err, &remote) || remote.Text != "the reason" {
		t.Errorf("%v, want the other end's reason", err)
	}
}

// What fits in no message is refused where it is sent, and the connection goes
// on.
func TestOversizedMessages(t *testing.T) {
	huge := strings.Repeat("x", MaxMessage)
	asks, _ := pair(t, func(r *Request) {
		switch r.Op {
		case "huge":
			r.Reply(huge, nil)
		case "files":
			r.Reply(nil, nil, make([]*os.File, MaxFiles+1)...)
		default:
			echo(r)
		}
	})
	if _, err := asks.Call(t.Context(), "echo", huge, nil); err == nil || errors.Is(err, ErrLost) {
		t.Errorf("huge request: %v, want a refusal", err)
	}
	if _, err := asks.Call(t.Context(), "echo", nil, nil, make([]*os.File, MaxFiles+1)...); err == nil || errors.Is(err, ErrLost) {
		t.Errorf("too many files: %v, want a refusal", err)
	}
	for _, op := range []string{"huge", "files"} {
		var remote *Remote
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		if _, err := asks.Call(ctx, op, nil, nil); !errors.As(err, &remote) {
			t.Errorf("reply %s: %v, want the other end's refusal", op, err)
		}
	}
	fits := huge[:MaxMessage-100]
	var got string
	if _, err := asks.Call(t.Context(), "echo", fits, &got); err != nil || got != fits {
		t.Errorf("a message that fits: %d bytes, %v", len(got), err)
	}
}

// A peer that breaks the protocol loses its connection, and its files are
// closed.
func TestBrokenMessages(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for name, packet := range map[string][]byte{
		"no JSON":  []byte("hello"),
		"cut off":  []byte(strings.Repeat("x", MaxMessage+1)),
		"no JSON'": {0},
	} {
		a, b := conns(t)
		var oob []byte
		raw, err := w.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		_ = raw.Control(func(fd uintptr) { oob = unix.UnixRights(int(fd)) })
		if _, _, err := a.c.WriteMsgUnix(packet, oob, nil); err != nil {
			t.Fatal(err)
		}
		served := NewPeer(b)
		served.Serve(func(r *Request) { t.Errorf("%s: request %q", name, r.Op) })
		<-served.Done()
	}
	w.Close()
	if err := awaitEnd(r); err != nil {
		t.Errorf("a file of a broken message is open: %v", err)
	}
}

func TestLostPeer(t *testing.T) {
	arrived := make(chan struct{})
	asks, serves := pair(t, func(r *Request) { close(arrived) })
	waiting := make(chan error)
	go func() {
		_, err := asks.Call(t.Context(), "never answered", nil, nil)
		waiting <- err
	}()
	<-arrived
	serves.Close()
	if err := <-waiting; !errors.Is(err, ErrLost) {
		t.Errorf("waiting: %v, want ErrLost", err)
	}
	<-asks.Done()
	if _, err := asks.Call(t.Context(), "late", nil, nil); !errors.Is(err, ErrLost) {
		t.Errorf("late: %v, want ErrLost", err)
	}
	if err := asks.Notify("late", nil); !errors.Is(err, ErrLost) {
		t.Errorf("notice: %v, want ErrLost", err)
	}
}

func TestManyCallsAtOnce(t *testing.T) {
	var later sync.WaitGroup
	t.Cleanup(later.Wait) // when nothing is served any more
	asks, _ := pair(t, func(r *Request) { later.Go(func() { echo(r) }) })
	var all sync.WaitGroup
	for i := range 50 {
		all.Go(func() {
			for j := range 50 {
				want := fmt.Sprint(i, " ", j)
				var got string
				if _, err := asks.Call(t.Context(), "echo", want, &got); err != nil || got != want {
					t.Errorf("got %q, %v, want %q", got, err, want)
				}
			}
		})
	}
	all.Wait()
}

// Requests and notices arrive in order, one at a time.
func TestOrder(t *testing.T) {
	got := make(chan int, 101)
	asks, _ := pair(t, func(r *Request) {
		var i int
		if err := r.Decode(&i); err != nil {
			t.Error(err)
		}
		got <- i
		r.Reply(nil, nil) // nothing to a notice
	})
	for i := range 100 {
		if err := asks.Notify("notice", i); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := asks.Call(t.Context(), "last", 100, nil); err != nil {
		t.Fatal(err)
	}
	for i := range 101 {
		if g := <-got; g != i {
			t.Fatalf("got %d as number %d", g, i)
		}
	}
}

// The files of a reply that nobody waits for any more are closed.
func TestFilesOfAReplyTooLate(t *testing.T) {
	arrived, goOn := make(chan struct{}), make(chan struct{})
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	asks, _ := pair(t, func(q *Request) {
		if q.Op == "slow" {
			close(arrived)
			<-goOn
			q.Reply(nil, nil, w)
			return
		}
		q.Reply(nil, nil)
	})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-arrived
		cancel()
	}()
	if _, err := asks.Call(ctx, "slow", nil, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want context.Canceled", err)
	}
	close(goOn)
	if _, err := asks.Call(t.Context(), "after it", nil, nil); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if err := awaitEnd(r); err != nil {
		t.Errorf("the late file is open: %v", err)
	}
}
