package cri

import (
	"context"
	"errors"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/cni"
	"berth/cri/admin"
	"berth/image"
	"berth/oci"
	"berth/sandbox"
	"berth/test/leak"
	"berth/test/registry"
)

// node is a Server over real pods and a real image store, with a registry to
// pull from. Only what touches the kernel is made up: fakeRuntime, fakeNetwork
// and the roots of containers.
type node struct {
	runtimeapi.RuntimeServiceClient
	images   runtimeapi.ImageServiceClient
	conn     *grpc.ClientConn
	server   *Server
	registry *registry.Registry
	network  *fakeNetwork
	runtime  *fakeRuntime
	roots    *fakeRoots
	effects  *effects // of network, runtime and the roots
}

func newNode(t *testing.T) *node {
	t.Helper()
	leak.NeedRoot(t) // layers are unpacked with their owners
	made := &effects{there: map[string]bool{}}
	n := &node{
		registry: registry.Start(t),
		network:  &fakeNetwork{effects: made},
		runtime:  &fakeRuntime{effects: made, processes: map[string]*process{}},
		effects:  made,
	}
	store := &image.Store{Dir: filepath.Join(t.TempDir(), "store")}
	if err := store.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	n.roots = &fakeRoots{Store: store, effects: made, root: t.TempDir()}
	pods := &sandbox.Pods{
		Dir:            filepath.Join(t.TempDir(), "pods"),
		DefaultRuntime: "fast",
		Runtimes:       map[string]sandbox.Runtime{"fast": n.runtime, "slow": &fakeRuntime{effects: made, noUserNS: errors.New("too old")}},
		Network:        n.network,
		Images:         n.roots,
	}
	if err := pods.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pods.Close)
	n.server = &Server{Pods: pods, Images: store, Network: n.network, Info: func() map[string]string { return map[string]string{"config": "{}"} }}
	streams, err := ListenStreams(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	streams.heartbeat = 20 * time.Millisecond
	n.server.Streams = streams
	n.conn = serve(t, n.server)
	n.RuntimeServiceClient = runtimeapi.NewRuntimeServiceClient(n.conn)
	n.images = runtimeapi.NewImageServiceClient(n.conn)
	return n
}

// serve serves s until the test ends.
func serve(t *testing.T, s *Server) *grpc.ClientConn {
	t.Helper()
	l := bufconn.Listen(1 << 20)
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, l) }()
	conn, err := grpc.NewClient("passthrough:berth", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(admin.MaxMessage), grpc.MaxCallSendMsgSize(admin.MaxMessage)),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return conn
}

// effects are what the made-up parts of a node have made and not taken back.
type effects struct {
	mu    sync.Mutex
	there map[string]bool
}

func (e *effects) add(kind, id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.there[kind+" "+id] = true
}

func (e *effects) drop(kind, id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.there, kind+" "+id)
}

func (e *effects) list() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Sorted(maps.Keys(e.there))
}

// fakeNetwork gives every pod the same address.
type fakeNetwork struct {
	effects *effects

	mu      sync.Mutex
	status  error
	builtin map[string]bool // by pod id: it was added with the built-in network allowed
}

func (f *fakeNetwork) Add(_ context.Context, p cni.Pod) (cni.Attachment, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.builtin == nil {
		f.builtin = map[string]bool{}
	}
	f.builtin[p.ID] = p.Builtin
	f.effects.add("attachment", p.ID)
	return cni.Attachment{}, nil
}

func (f *fakeNetwork) Del(_ context.Context, p cni.Pod) error {
	f.effects.drop("attachment", p.ID)
	return nil
}

func (f *fakeNetwork) GC(context.Context, map[string]bool) error { return nil }

func (f *fakeNetwork) Status(context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.status
}

// fakeRoots is a real store whose containers have an empty directory as root.
type fakeRoots struct {
	*image.Store
	effects *effects
	root    string
	broken  error // nil: roots can be mounted
}

func (f *fakeRoots) Root(_ context.Context, id string, _ *image.Image, _ *image.Users) (*os.File, error) {
	if f.broken != nil {
		return nil, f.broken
	}
	f.effects.add("root", id)
	return os.Open(f.root)
}

func (f *fakeRoots) RemoveRoot(_ context.Context, id string) error {
	f.effects.drop("root", id)
	return nil
}

func (f *fakeRoots) Roots() []string { return nil }

// fakeRuntime starts processes that run until they are killed.
type fakeRuntime struct {
	effects *effects

	mu        sync.Mutex
	processes map[string]*process
	exec      func(ctx context.Context, e oci.Exec) (int, error) // what Exec does
	attach    func(ctx context.Context, a oci.Attach) error
	dial      func(ctx context.Context, port uint16) (oci.Conn, error)
	reopened  int
	broken    map[string]error // containers and pods whose numbers cannot be read
	noUserNS  error
	features  oci.Features
}

type process struct {
	ended chan struct{}
	exit  oci.Exit
}

func (f *fakeRuntime) UserNamespaces() error { return f.noUserNS }

func (f *fakeRuntime) Left(context.Context, oci.Container) (*os.File, error) { return nil, nil }

func (f *fakeRuntime) TuneNetwork(context.Context, oci.Pod, map[string]string) error { return nil }

func (f *fakeRuntime) MakePod(_ context.Context, p oci.Pod) error {
	f.effects.add("namespaces", p.ID)
	return os.MkdirAll(p.Files(), 0o700)
}

func (f *fakeRuntime) RemovePod(_ context.Context, p oci.Pod) error {
	f.effects.drop("namespaces", p.ID)
	return nil
}

func (f *fakeRuntime) Start(_ context.Context, s oci.Start) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.processes[s.ID] == nil {
		f.processes[s.ID] = &process{ended: make(chan struct{})}
		f.effects.add("process", s.ID)
	}
	return 4711, nil
}

func (f *fakeRuntime) process(id string) *process {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.processes[id]
}

func (f *fakeRuntime) Wait(ctx context.Context, c oci.Container) (oci.Exit, error) {
	p := f.process(c.ID)
	if p == nil {
		return oci.Exit{}, oci.ErrExitUnknown
	}
	select {
	case <-p.ended:
		return p.exit, nil
	case <-ctx.Done():
		return oci.Exit{}, ctx.Err()
	}
}

func (f *fakeRuntime) Signal(_ context.Context, c oci.Container, sig syscall.Signal) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	p := f.processes[c.ID]
	if p == nil {
		return oci.ErrNotRunning
	}
	select {
	case <-p.ended:
		return oci.ErrNotRunning
	default:
		p.exit = oci.Exit{Code: 128 + int(sig), At: time.Now()}
		close(p.ended)
		return nil
	}
}

func (f *fakeRuntime) Kill(ctx context.Context, c oci.Container) error {
	if err := f.Signal(ctx, c, syscall.SIGKILL); !errors.Is(err, oci.ErrNotRunning) {
		return err
	}
	return nil
}

func (f *fakeRuntime) Remove(ctx context.Context, c oci.Container) error {
	f.effects.drop("process", c.ID)
	return f.Kill(ctx, c)
}

func (f *fakeRuntime) Exec(ctx context.Context, e oci.Exec) (int, error) { return f.exec(ctx, e) }

func (f *fakeRuntime) Attach(ctx context.Context, a oci.Attach) error { return f.attach(ctx, a) }

func (f *fakeRuntime) CloseStdin(context.Context, oci.Container) error { return nil }

func (f *fakeRuntime) Dial(ctx context.Context, _ oci.Pod, port uint16) (oci.Conn, error) {
	return f.dial(ctx, port)
}

func (f *fakeRuntime) ReopenLog(context.Context, oci.Container, *os.File) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reopened++
	return nil
}

func (f *fakeRuntime) Stats(_ context.Context, c oci.Container) (oci.Usage, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.broken[c.ID]; err != nil {
		return oci.Usage{}, err
	}
	var u oci.Usage
	u.At, u.CPU = time.Now(), &oci.CPU{Usage: time.Second}
	return u, nil
}

func (f *fakeRuntime) PodStats(_ context.Context, p oci.Pod, _ []oci.Container) (oci.PodUsage, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var u oci.PodUsage
	u.At = time.Now()
	return u, f.broken[p.ID]
}
func (f *fakeRuntime) Limits(context.Context, oci.Container, oci.Update) (oci.Limits, error) {
	return oci.Limits{}, nil
}
func (f *fakeRuntime) Update(context.Context, oci.Container, oci.Update) error  { return nil }
func (f *fakeRuntime) Restore(context.Context, oci.Container, oci.Limits) error { return nil }
func (f *fakeRuntime) Features() oci.Features                                   { return f.features }

func (f *fakeRuntime) GC(context.Context, func(string) bool) error { return nil }
