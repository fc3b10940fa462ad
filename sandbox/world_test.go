package sandbox

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"berth/cni"
	"berth/image"
	"berth/oci"
)

// world is a small machine in memory: what the kernel, the network and the image
// store hold. It outlives the daemons of a test, as the real ones do, and plays
// Runtime, Network and Images for them.
type world struct {
	rootFS string // directory that every container's root is

	mu       sync.Mutex
	pods     map[string]bool  // have namespaces
	attached map[string]bool  // have an address
	procs    map[string]*proc // were started and not removed
	roots    map[string]bool  // have a writable layer
	views    map[string]bool  // "<container>/<image>", for containers that have a writable layer
	deaf     bool             // processes ignore their stop signal
	stubborn bool             // logs are not reopened
	scarce   bool             // of two limits the second is not taken
	said     []string         // signals that were sent, by name
	closed   []string         // containers whose stdin was closed
	starts   int              // processes that ever were
	cut      bool             // the death of one of ours cuts each start
	gate     chan struct{}    // Add waits until it is closed; nil: it does not
	images   map[string]*image.Image
	asked    oci.Pod           // of the last MakePod
	tuned    map[string]string // sysctls of the last TuneNetwork
	updates  []oci.Update
	features oci.Features
	noUserNS error   // why pods get no user namespaces
	askedNet cni.Pod // of the last Add
	nextIP   int

	broken     map[string]error // whose numbers cannot be read
	usage      oci.Usage        // of everything that runs
	interfaces []oci.Interface  // of every pod
	layer      image.Usage      // of every writable layer
}

type proc struct {
	pid  int
	may  map[string]string // limits in the kernel, by name
	done chan struct{}
	exit oci.Exit
	err  error
}

func newWorld(dir string) (*world, error) {
	etc := filepath.Join(dir, "etc")
	if err := os.MkdirAll(etc, 0o755); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(etc, "passwd"), []byte("root:x:0:0::/root:/bin/sh\n"), 0o644); err != nil {
		return nil, err
	}
	w := &world{
		rootFS:   dir,
		pods:     map[string]bool{},
		attached: map[string]bool{},
		procs:    map[string]*proc{},
		roots:    map[string]bool{},
		views:    map[string]bool{},
		images:   map[string]*image.Image{},
	}
	w.images["busybox"] = &image.Image{
		ID:     digest.FromString("busybox"),
		Layers: []digest.Digest{digest.FromString("layer")},
		Config: ocispec.Image{Config: ocispec.ImageConfig{Cmd: []string{"sh"}, StopSignal: "SIGQUIT"}},
	}
	w.images["volumes"] = &image.Image{
		ID: digest.FromString("volumes"), Layers: []digest.Digest{digest.FromString("layer")},
		Config: ocispec.Image{Config: ocispec.ImageConfig{Cmd: []string{"sh"}, StopSignal: "SIGQUIT", Volumes: map[string]struct{}{"/volume": {}}}},
	}
	w.images["data"] = &image.Image{ID: digest.FromString("data"), Layers: []digest.Digest{digest.FromString("data layer")}}
	return w, nil
}

func (w *world) UserNamespaces() error { return w.noUserNS }

func (w *world) MakePod(ctx context.Context, p oci.Pod) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pods[p.ID] = true
	w.asked = p
	return os.MkdirAll(p.Files(), 0o700)
}

func (w *world) TuneNetwork(ctx context.Context, p oci.Pod, sysctls map[string]string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.attached[p.ID] {
		return fmt.Errorf("the network is not there yet")
	}
	w.tuned = sysctls
	return nil
}

func (w *world) RemovePod(ctx context.Context, p oci.Pod) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.pods, p.ID)
	return nil
}

func (w *world) Start(ctx context.Context, s oci.Start) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if p := w.procs[s.ID]; p != nil {
		return p.pid, nil
	}
	if !w.roots[s.ID] {
		return 0, fmt.Errorf("start without a root")
	}
	for view := range w.views {
		if id, name, _ := strings.Cut(view, "/"); id == s.ID && s.Views[name] == nil {
			return 0, fmt.Errorf("start without the view %s", name)
		}
	}
	if w.cut {
		return 0, w.cutError()
	}
	w.starts++
	w.procs[s.ID] = &proc{pid: 1000 + w.starts, may: kernelLimits(s.Spec.Linux.Resources), done: make(chan struct{})}
	return 1000 + w.starts, nil
}

// cutError is that of a start of which nobody knows whether it has begun.
func (w *world) cutError() error {
	return fmt.Errorf("its runtime was killed: %w", oci.ErrExitUnknown)
}

func (w *world) Left(ctx context.Context, c oci.Container) (*os.File, error) { return nil, nil }

func (w *world) Wait(ctx context.Context, c oci.Container) (oci.Exit, error) {
	w.mu.Lock()
	p := w.procs[c.ID]
	w.mu.Unlock()
	if p == nil {
		return oci.Exit{}, oci.ErrExitUnknown
	}
	select {
	case <-p.done:
		return p.exit, p.err
	case <-ctx.Done():
		return oci.Exit{}, ctx.Err()
	}
}

// end lets a process end, once.
func (w *world) end(id string, code int, err error) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := w.procs[id]
	if p == nil || !p.alive() {
		return false
	}
	p.exit, p.err = oci.Exit{Code: code, At: time.Now()}, err
	close(p.done)
	return true
}

func (p *proc) alive() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

func (w *world) Signal(ctx context.Context, c oci.Container, sig syscall.Signal) error {
	w.mu.Lock()
	w.said = append(w.said, sig.String())
	deaf := w.deaf
	w.mu.Unlock()
	if !deaf && !w.end(c.ID, 128+int(sig), nil) {
		return oci.ErrNotRunning
	}
	return nil
}

func (w *world) Kill(ctx context.Context, c oci.Container) error {
	w.end(c.ID, 137, nil)
	return nil
}

func (w *world) Remove(ctx context.Context, c oci.Container) error {
	w.end(c.ID, 137, nil)
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.procs, c.ID)
	return nil
}

func (w *world) Exec(ctx context.Context, e oci.Exec) (int, error) {
	if e.Process.Args[0] == "env" {
		fmt.Fprint(e.Stdout, strings.Join(e.Process.Env, "\n"))
		return 0, nil
	}
	fmt.Fprint(e.Stdout, strings.Join(e.Process.Args, " "))
	return 0, nil
}

func (w *world) Attach(ctx context.Context, a oci.Attach) error {
	w.mu.Lock()
	p := w.procs[a.ID]
	w.mu.Unlock()
	if p == nil {
		return oci.ErrNotRunning
	}
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (w *world) CloseStdin(ctx context.Context, c oci.Container) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = append(w.closed, c.ID)
	return nil
}

func (w *world) Dial(ctx context.Context, p oci.Pod, port uint16) (oci.Conn, error) {
	return nil, syscall.ECONNREFUSED
}

func (w *world) ReopenLog(ctx context.Context, c oci.Container, log *os.File) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stubborn {
		return errInjected
	}
	return nil
}

func (w *world) Stats(ctx context.Context, c oci.Container) (oci.Usage, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.broken[c.ID]; err != nil {
		return oci.Usage{}, err
	}
	if p := w.procs[c.ID]; p == nil || !p.alive() {
		return oci.Usage{}, oci.ErrNotRunning
	}
	return w.usage, nil
}

func (w *world) PodStats(ctx context.Context, p oci.Pod, containers []oci.Container) (oci.PodUsage, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.broken[p.ID]; err != nil {
		return oci.PodUsage{}, err
	}
	return oci.PodUsage{Usage: w.usage, Processes: uint64(len(containers)), Interfaces: w.interfaces}, nil
}

// kernelLimits are those that the world's kernel knows.
func kernelLimits(r *specs.LinuxResources) map[string]string {
	may := map[string]string{}
	if r.Memory != nil {
		may["memory"] = fmt.Sprint(*r.Memory.Limit)
	}
	if r.CPU != nil && r.CPU.Shares != nil {
		may["shares"] = fmt.Sprint(*r.CPU.Shares)
	}
	return may
}

func (w *world) Limits(ctx context.Context, c oci.Container, u oci.Update) (oci.Limits, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := w.procs[c.ID]
	if p == nil || !p.alive() {
		return oci.Limits{}, oci.ErrNotRunning
	}
	return oci.Limits{Files: maps.Clone(p.may)}, nil
}

func (w *world) Update(ctx context.Context, c oci.Container, u oci.Update) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := w.procs[c.ID]
	if p == nil || !p.alive() {
		return oci.ErrNotRunning
	}
	w.updates = append(w.updates, u)
	for i, name := range []string{"memory", "shares"} {
		value, named := kernelLimits(u.Resources)[name]
		if named && w.scarce && i > 0 {
			return errInjected
		}
		if named {
			p.may[name] = value
		}
	}
	return nil
}

func (w *world) Restore(ctx context.Context, c oci.Container, l oci.Limits) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if p := w.procs[c.ID]; p != nil {
		p.may = maps.Clone(l.Files)
	}
	return nil
}

func (w *world) Features() oci.Features { return w.features }

func (w *world) GC(ctx context.Context, keep func(string) bool) error {
	w.mu.Lock()
	pods, procs := keysOf(w.pods), keysOf(w.procs)
	w.mu.Unlock()
	for _, id := range pods {
		if !keep(id) {
			w.RemovePod(ctx, oci.Pod{ID: id})
		}
	}
	for _, id := range procs {
		if !keep(id) {
			w.Remove(ctx, oci.Container{ID: id})
		}
	}
	return nil
}

// has says whether the pod has namespaces, and an address.
func (w *world) has(id string) (pod, address bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.pods[id], w.attached[id]
}

func keysOf[V any](m map[string]V) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// net is the world's network.
type net struct{ *world }

func (n net) Add(ctx context.Context, p cni.Pod) (cni.Attachment, error) {
	n.mu.Lock()
	gate := n.gate
	n.mu.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return cni.Attachment{}, ctx.Err()
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.pods[p.ID] {
		return cni.Attachment{}, fmt.Errorf("no network namespace")
	}
	n.attached[p.ID] = true
	n.askedNet = p
	n.nextIP++
	return cni.Attachment{IPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(n.nextIP)})}}, nil
}

func (n net) Del(ctx context.Context, p cni.Pod) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.attached, p.ID)
	return nil
}

func (n net) GC(ctx context.Context, keep map[string]bool) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	for id := range n.attached {
		if !keep[id] {
			delete(n.attached, id)
		}
	}
	return nil
}

// store is the world's image store.
type store struct{ *world }

func (s store) Image(ref string) (*image.Image, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if img := s.images[ref]; img != nil {
		return img, nil
	}
	return nil, image.ErrNotFound
}

func (s store) Root(ctx context.Context, id string, img *image.Image, users *image.Users) (*os.File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(img.Layers) == 0 {
		return nil, fmt.Errorf("image without layers")
	}
	s.roots[id] = true
	return os.Open(s.rootFS)
}

func (s store) RemoveRoot(ctx context.Context, id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.procs[id] != nil {
		return fmt.Errorf("its process still holds it")
	}
	delete(s.roots, id)
	maps.DeleteFunc(s.views, func(view string, _ bool) bool { return strings.HasPrefix(view, id+"/") })
	return nil
}

func (s store) View(ctx context.Context, id string, img *image.Image, users *image.Users) (*os.File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.roots[id] || len(img.Layers) == 0 {
		return nil, fmt.Errorf("view of %v for %s", img, id)
	}
	s.views[id+"/"+img.ID.Encoded()] = true
	return os.Open(s.rootFS)
}

func (s store) Volumes(ctx context.Context, id string, root *os.File, paths []string, users *image.Users) (*os.File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.roots[id] {
		return nil, fmt.Errorf("volumes of %s, which has no root", id)
	}
	s.views[id+"/"+volumesView] = true
	return os.Open(s.rootFS)
}

func (s store) RootUsage(id string) image.Usage {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.layer
}

func (s store) Roots() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return keysOf(s.roots)
}

// reboot ends everything but what is on disk.
func (w *world) reboot() {
	for _, id := range keysOf(w.procs) {
		w.end(id, 137, oci.ErrExitUnknown)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	clear(w.procs)
	clear(w.pods)
}
