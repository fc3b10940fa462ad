package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"k8s.io/klog/v2"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Open recovers the pods of Dir, and those of an earlier boot from Mirror, and
// begins the background work. What an earlier daemon left half done goes on in
// the background: a creation is undone (its caller is gone and would make a new
// one), everything else is finished. No record, however broken, keeps Open from
// succeeding.
func (ps *Pods) Open(ctx context.Context) error {
	ps.background = newBackground()
	ps.mirror = newMirror(ps.Mirror)
	ps.pods, ps.containers = map[string]*Pod{}, map[string]*Container{}
	ps.identities, ps.uids = map[identity]*Pod{}, map[string][]*Pod{}
	if ps.Sweep == 0 {
		ps.Sweep = 10 * time.Minute
	}
	if err := ps.read(); err != nil {
		return fmt.Errorf("open pods: %w", err)
	}
	for _, p := range slices.Collect(maps.Values(ps.pods)) {
		ps.mirror.touch(p.id)
		if err := p.resume(ctx); err != nil {
			klog.ErrorS(err, "Recovering a pod", "pod", p.id)
		}
	}
	if ps.Mirror != "" {
		ps.background.run(ps.keepMirror)
	}
	ps.background.run(ps.keepSweeping)
	return nil
}

// OpenFiles is the RLIMIT_NOFILE that containers get: less than NoFile where this
// process cannot give as much.
func (ps *Pods) OpenFiles() uint64 { return ps.node.openFiles() }

// Close ends the background work and waits for it. Pods and containers run on,
// and the next Open finishes what was under way. Calls after it return
// ErrClosed.
func (ps *Pods) Close() { ps.background.close() }

// read fills the indexes from the disk. Nothing else runs yet.
func (ps *Pods) read() (err error) {
	if ps.boot == "" {
		if ps.boot, err = bootID(); err != nil {
			return err
		}
	}
	if ps.node, err = lookAround(ps.NoFile); err != nil {
		return err
	}
	// To be gone through by the roots of user namespaces, not to be listed.
	if err := os.MkdirAll(ps.Dir, 0o711); err != nil {
		return err
	}
	if err := open(ps.Dir, 0o711, -1); err != nil {
		return err
	}
	entries, err := os.ReadDir(ps.Dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if isID(entry.Name()) {
			ps.readPod(entry.Name())
		}
	}
	if err := ps.restore(); err != nil {
		return err
	}
	for _, p := range ps.pods {
		if s := p.rec.State; s == podReady || s == podNotReady {
			ps.identities[p.identity()] = p
		}
	}
	return nil
}

// readPod reads a pod and its containers. One that cannot be read can only be
// removed, by the same way as any other.
func (ps *Pods) readPod(id string) {
	p := ps.newPod(id, RunRequest{Config: &runtimeapi.PodSandboxConfig{}})
	if err := load(p.dir, p.config, &p.rec); err != nil || p.rec.ID != id {
		unreadable(err, p.dir)
		p.rec = podRecord{lastingPod: lastingPod{ID: id, Boot: ps.boot}, State: podRemoving, Dropped: true}
	}
	if _, ok := ps.handler(p.rec.Handler); !ok {
		klog.InfoS("The runtime handler of a pod is not configured any more; nothing can be started in it", "pod", id, "handler", p.rec.Handler)
	}
	entries, err := readDirIfAny(filepath.Join(p.dir, "c"))
	if err != nil {
		klog.ErrorS(err, "Reading the containers of a pod", "pod", id)
	}
	for _, entry := range entries {
		if isID(entry.Name()) {
			p.readContainer(entry.Name())
		}
	}
	ps.addLocked(p)
}

func (p *Pod) readContainer(id string) {
	c := p.newContainer(id, &runtimeapi.ContainerConfig{})
	if err := load(c.dir, c.config, &c.rec); err != nil || c.rec.ID != id {
		unreadable(err, c.dir)
		c.rec = containerRecord{lastingContainer: lastingContainer{ID: id}, State: containerRemoving}
	}
	if !c.rec.FinishedAt.IsZero() {
		c.closeExited()
	}
	p.containers[id] = c
}

func unreadable(err error, dir string) {
	if errors.Is(err, fs.ErrNotExist) {
		return // never begun, or half removed
	}
	if err == nil {
		err = errors.New("it is the record of another")
	}
	klog.ErrorS(err, "A record cannot be read; removing everything of it", "dir", dir)
}

// resume brings the pod to where its record was going.
func (p *Pod) resume(ctx context.Context) error {
	if p.rec.Boot != p.pods.boot {
		if err := p.lose(); err != nil {
			return err
		}
	}
	for _, c := range p.all() {
		c.resume(ctx)
	}
	rec := p.record()
	v, do := verbStop, p.stop
	switch {
	case rec.State == podCreating || rec.State == podRemoving:
		v, do = verbRemove, p.remove
	case rec.State == podNotReady && !(rec.Freed && rec.Detached):
	default:
		return nil
	}
	_, err := p.slot.begin(ctx, p.pods.background, &flight{verb: v}, operationTimeout, p.reported(v, nil, do))
	return err
}

// lose records that the node was rebooted: nothing of the pod runs, and its
// network may still hold what it was given.
func (p *Pod) lose() error {
	event := podLost
	if p.rec.State == podCreating || p.rec.State == podRemoving {
		event = podRemove
	}
	for _, c := range p.all() {
		if s := c.rec.State; s != containerCreating && s != containerRemoving {
			if err := c.change(containerLost, func(rec *containerRecord) {
				rec.Freed = false
				rec.lost()
			}); err != nil {
				return err
			}
		}
	}
	return p.change(event, func(rec *podRecord) { rec.Boot, rec.Freed = p.pods.boot, false })
}

// lost fills in the end of a container that the node's reboot took, if it had
// not ended before.
func (rec *containerRecord) lost() {
	rec.Pid = 0
	if rec.FinishedAt.IsZero() {
		rec.FinishedAt = time.Now()
		rec.ExitCode, rec.Reason, rec.Message = codeUnknown, reasonUnknown, "the node was rebooted"
	}
}

func (c *Container) resume(ctx context.Context) {
	v, do := verbRemove, c.remove
	switch c.record().State {
	case containerCreating, containerRemoving:
	case containerStarting:
		v, do = verbStart, c.start
	case containerRunning:
		c.watch()
		c.closeTakenStdin()
		c.resumeUpdate(ctx)
		return
	default:
		return
	}
	if _, err := c.begin(ctx, &flight{verb: v}, operationTimeout, do); err != nil {
		klog.ErrorS(err, "Recovering a container", "container", c.id)
	}
}

// keepSweeping looks for what no record knows, at once and then now and again.
func (ps *Pods) keepSweeping() {
	for {
		ps.sweep(ps.background.ctx)
		if !ps.background.pause(ps.Sweep) {
			return
		}
	}
}

// sweep destroys what the kernel, the network and the images hold for ids that
// no record has. New ids have a record before they have anything else, and are
// asked for after what is there was listed.
func (ps *Pods) sweep(ctx context.Context) {
	for name, r := range ps.Runtimes {
		if err := ps.effect(ctx, "runtime.GC", func() error { return r.GC(ctx, ps.holds) }); err != nil && ctx.Err() == nil {
			klog.ErrorS(err, "Removing what no pod owns", "runtime", name)
		}
	}
	if err := ps.effect(ctx, "network.GC", func() error { return ps.Network.GC(ctx, ps.ids()) }); err != nil && ctx.Err() == nil {
		klog.ErrorS(err, "Detaching what no pod owns")
	}
	for _, id := range ps.Images.Roots() {
		if ps.holds(id) {
			continue
		}
		if err := ps.effect(ctx, "images.RemoveRoot", func() error { return ps.Images.RemoveRoot(ctx, id) }); err != nil && ctx.Err() == nil {
			klog.ErrorS(err, "Removing a writable layer that no container owns", "id", id)
		}
	}
}

func isID(name string) bool { return len(name) == 64 && strings.Trim(name, "0123456789abcdef") == "" }

// readDirIfAny is os.ReadDir; a directory that is not there is empty.
func readDirIfAny(dir string) ([]os.DirEntry, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return entries, err
}
