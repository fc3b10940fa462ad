package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var errInjected = errors.New("injected failure")

// machine is a world, its disk, and the daemon of the moment. Tests with one run
// in a synctest bubble, so that time passes when everything waits.
type machine struct {
	t     *testing.T
	world *world
	run   string // what a reboot empties
	state string // what it keeps
	boot  int
	*daemon
	buried []*daemon // that crashed
}

// daemon is one Pods and the misfortune planned for it.
type daemon struct {
	*Pods
	release chan struct{} // closed when the test ends, for the goroutines of a dead daemon

	mu      sync.Mutex
	dead    bool
	effects []string // "name" of every effect that was tried, since the last plan
	plan    func(n int, name string, after bool) fate
}

type fate int

const (
	proceed fate = iota
	failNow
	crashNow
)

func newMachine(t *testing.T) *machine {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "berth-world-") // where records are, as /run is
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	w, err := newWorld(filepath.Join(dir, "rootfs"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "logs"), 0o755); err != nil {
		t.Fatal(err)
	}
	m := &machine{t: t, world: w, run: filepath.Join(dir, "run"), state: filepath.Join(dir, "state"), boot: 1}
	m.open()
	return m
}

func (m *machine) open() { m.openWith(nil) }

func (m *machine) openWith(plan func(int, string, bool) fate) {
	m.t.Helper()
	d := &daemon{release: make(chan struct{}), plan: plan}
	d.Pods = &Pods{
		Dir:            filepath.Join(m.run, "pods"),
		Mirror:         filepath.Join(m.state, "pods"),
		DefaultRuntime: "test",
		Runtimes:       map[string]Runtime{"test": m.world},
		Network:        net{m.world},
		Images:         store{m.world},
		boot:           fmt.Sprint("boot ", m.boot),
		hook:           d.meet,
	}
	m.daemon = d
	if err := d.Open(m.t.Context()); err != nil {
		m.t.Fatal(err)
	}
	synctest.Wait()
}

// meet is the hook of a daemon: it fails and crashes by plan. Once dead, no
// goroutine of it has any effect.
func (d *daemon) meet(name string, after bool) error {
	d.mu.Lock()
	if !after {
		d.effects = append(d.effects, name)
	}
	n := len(d.effects) - 1
	for after && n > 0 && d.effects[n] != name { // others began meanwhile
		n--
	}
	what := proceed
	if d.plan != nil && !d.dead {
		what = d.plan(n, name, after)
	}
	if what == crashNow {
		d.dead = true
	}
	dead := d.dead
	d.mu.Unlock()
	if dead {
		<-d.release
		runtime.Goexit()
	}
	if what == failNow {
		return errInjected
	}
	return nil
}

func (d *daemon) intend(plan func(n int, name string, after bool) fate) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.effects, d.plan = nil, plan
}

func (d *daemon) crashed() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.dead
}

func (d *daemon) done() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]string(nil), d.effects...)
}

// crash ends the daemon without a goodbye.
func (m *machine) crash() {
	m.daemon.mu.Lock()
	m.dead = true
	m.daemon.mu.Unlock()
	synctest.Wait()
}

// reopen starts the next daemon after a crash or a close.
func (m *machine) reopen() { m.reopenWith(nil) }

func (m *machine) reopenWith(plan func(int, string, bool) fate) {
	m.t.Helper()
	m.buried = append(m.buried, m.daemon)
	m.openWith(plan)
}

// reboot crashes the node. Its run directory survives only where it is on a disk.
func (m *machine) reboot(onDisk bool) {
	m.t.Helper()
	m.crash()
	m.world.reboot()
	if !onDisk {
		if err := os.RemoveAll(m.run); err != nil {
			m.t.Fatal(err)
		}
	}
	m.boot++
	m.reopen()
}

// end lets go of everything; the test's last act.
func (m *machine) end() {
	for _, d := range append(m.buried, m.daemon) {
		close(d.release)
		d.Close()
	}
	m.world.reboot()
}

// pass lets time go by; in the bubble it costs none.
func pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

// call makes an RPC that ends with the daemon, and returns its error; nil and
// false if the daemon crashed under it.
func (m *machine) call(do func(context.Context) error) (err error, answered bool) {
	ctx, cancel := context.WithCancel(m.t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- do(ctx) }()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case err := <-done:
			return err, true
		case <-tick.C:
			if m.crashed() {
				cancel()
				<-done
				return nil, false
			}
		}
	}
}

func podConfig(name string) *runtimeapi.PodSandboxConfig {
	return &runtimeapi.PodSandboxConfig{
		Metadata:  &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "default", Uid: "uid-" + name},
		Hostname:  name,
		Labels:    map[string]string{UIDLabel: "uid-" + name},
		DnsConfig: &runtimeapi.DNSConfig{Servers: []string{"10.96.0.10"}},
	}
}

func containerConfig(name string) *runtimeapi.ContainerConfig {
	return &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: name},
		Image:    &runtimeapi.ImageSpec{Image: "busybox"},
		Linux:    &runtimeapi.LinuxContainerConfig{Resources: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 100 << 20, CpuShares: 100}},
	}
}

func (m *machine) runPod(ctx context.Context, name string) (*Pod, error) {
	return m.Run(ctx, RunRequest{Config: podConfig(name)})
}

// pod finds a pod by name, seen or unseen; nil without one.
func (m *machine) pod(name string) *Pod {
	m.Pods.mu.Lock()
	defer m.Pods.mu.Unlock()
	var found *Pod
	for _, p := range m.pods {
		if p.config.GetMetadata().GetName() == name && (found == nil || found.record().State == podRemoving) {
			found = p
		}
	}
	return found
}

func (m *machine) container(name string) *Container {
	m.Pods.mu.Lock()
	defer m.Pods.mu.Unlock()
	for _, c := range m.containers {
		if c.config.GetMetadata().GetName() == name {
			return c
		}
	}
	return nil
}

// check compares memory, disk and world. It is called when nothing is under way.
func (m *machine) check() {
	m.t.Helper()
	m.Pods.mu.Lock()
	defer m.Pods.mu.Unlock()
	w := m.world
	w.mu.Lock()
	defer w.mu.Unlock()
	held := map[string]bool{}
	for id, p := range m.pods {
		held[id] = true
		rec := p.record()
		m.same("record of pod "+p.config.GetMetadata().GetName(), filepath.Join(p.dir, recordFile), rec)
		if rec.State == podCreating || rec.State == podGone {
			m.t.Errorf("pod %s is %s with nothing under way", p.config.GetMetadata().GetName(), rec.State)
		}
		if w.pods[id] != !rec.Freed {
			m.t.Errorf("pod %s: namespaces %v, freed %v", rec.State, w.pods[id], rec.Freed)
		}
		if w.attached[id] && rec.Detached {
			m.t.Errorf("pod %s counts as detached and is not", rec.State)
		}
		for _, c := range p.all() {
			held[c.id] = true
			m.checkContainer(c)
		}
	}
	m.checkHeld("namespaces", keysOf(w.pods), held)
	m.checkHeld("addresses", keysOf(w.attached), held)
	m.checkHeld("processes", keysOf(w.procs), held)
	m.checkHeld("writable layers", keysOf(w.roots), held)
	entries, err := os.ReadDir(m.Dir)
	if err != nil {
		m.t.Error(err)
	}
	for _, e := range entries {
		m.checkHeld("directories", []string{e.Name()}, held)
	}
}

func (m *machine) checkContainer(c *Container) {
	m.t.Helper()
	rec := c.record()
	name := c.config.GetMetadata().GetName()
	m.same("record of container "+name, filepath.Join(c.dir, recordFile), rec)
	p := m.world.procs[c.id]
	if running := p != nil && p.alive(); running != (rec.State == containerRunning) {
		m.t.Errorf("container %s is %s, its process lives: %v", name, rec.State, running)
	}
	if may := kernelLimits(limits(c.resources(rec), m.node.controls)); rec.State == containerRunning && (!maps.Equal(p.may, may) || rec.Undo != nil) {
		m.t.Errorf("container %s may use %v, its record says %v, to undo: %v", name, p.may, may, rec.Undo)
	}
	if m.containers[c.id] != c {
		m.t.Errorf("container %s is not in the index", name)
	}
}

func (m *machine) checkHeld(what string, ids []string, held map[string]bool) {
	m.t.Helper()
	for _, id := range ids {
		if !held[id] {
			m.t.Errorf("%s are left of %s, which nobody knows", what, id)
		}
	}
}

func (m *machine) same(what, path string, memory any) {
	m.t.Helper()
	disk, err := os.ReadFile(path)
	if err != nil {
		m.t.Errorf("%s: %v", what, err)
		return
	}
	if want, err := json.Marshal(memory); err != nil || string(want) != string(disk) {
		m.t.Errorf("%s: on disk %s, in memory %s", what, disk, want)
	}
}

// empty says that nothing at all is left, on disk or in the world.
func (m *machine) empty() {
	m.t.Helper()
	pass(time.Minute) // the mirror is written
	m.check()
	if n := len(m.pods) + len(m.containers) + len(m.identities) + len(m.uids); n > 0 {
		m.t.Errorf("%d entries are left in the indexes", n)
	}
	if left := m.held(); left != "nothing" {
		m.t.Errorf("held: %s", left)
	}
	if entries, err := os.ReadDir(m.Mirror); err != nil || len(entries) > 0 {
		m.t.Errorf("mirror: %v, %v", entries, err)
	}
}

// held counts what the world holds.
func (m *machine) held() string {
	w := m.world
	w.mu.Lock()
	defer w.mu.Unlock()
	var parts []string
	for _, part := range []struct {
		n    int
		what string
	}{{len(w.pods), "namespaces"}, {len(w.attached), "addresses"}, {w.living(), "processes"}, {len(w.procs) - w.living(), "remains of processes"}, {len(w.roots), "writable layers"}, {len(w.views), "views"}} {
		if part.n > 0 {
			parts = append(parts, fmt.Sprint(part.what, " ", part.n))
		}
	}
	if parts == nil {
		return "nothing"
	}
	return strings.Join(parts, ", ")
}

func (w *world) living() (n int) {
	for _, p := range w.procs {
		if p.alive() {
			n++
		}
	}
	return n
}
