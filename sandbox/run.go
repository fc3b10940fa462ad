package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"berth/cni"
)

// RunRequest asks for a pod sandbox.
type RunRequest struct {
	Config  *runtimeapi.PodSandboxConfig // kept; the caller does not change it any more
	Handler string                       // runtime handler; "" is the default
	Builtin bool                         // the built-in network may serve it; never from a pod's own words
}

// Run makes a pod sandbox and returns when it is READY and networked (CRI
// RunPodSandbox). A second Run with the same name, namespace, uid and attempt
// joins the first one or returns its pod. When ctx ends the pod is made all the
// same. A failed Run leaves nothing behind.
//
// Errors: *InvalidError, ErrListFull, ErrPreempted, ErrIllegal (a pod of this identity is
// stopped), and what the runtime and the network say.
func (ps *Pods) Run(ctx context.Context, req RunRequest) (*Pod, error) {
	if err := ps.validatePod(req); err != nil {
		return nil, err
	}
	p, f, err := ps.joinOrRun(ctx, req)
	if err == nil && f != nil {
		err = f.wait(ctx)
	}
	if err != nil {
		meta := req.Config.GetMetadata()
		return nil, fmt.Errorf("run pod %s/%s: %w", meta.GetNamespace(), meta.GetName(), err)
	}
	return p, nil
}

// joinOrRun returns the pod of req's identity and the flight that makes it, nil
// if it is made already.
func (ps *Pods) joinOrRun(ctx context.Context, req RunRequest) (*Pod, *flight, error) {
	p := ps.newPod(newID(), req)
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if first := ps.identities[p.identity()]; first != nil {
		switch first.record().State {
		case podReady:
			return first, nil, nil
		case podNotReady:
			return nil, nil, fmt.Errorf("%w: pod %s with the same name, namespace, uid and attempt is stopped; remove it, or use the next attempt", ErrIllegal, first.id)
		case podCreating:
			if f := first.slot.current(); f != nil && f.verb == verbRun {
				return first, f, nil
			}
		}
		// It is on its way out, and its place is free.
	}
	if err := ps.roomLocked("pod", p.listed()); err != nil {
		return nil, nil, err
	}
	f, err := p.slot.begin(ctx, ps.background, &flight{verb: verbRun}, operationTimeout, p.reported(verbRun, nil, p.run))
	if err != nil {
		return nil, nil, err
	}
	ps.identities[p.identity()] = p
	ps.addLocked(p)
	return p, f, nil
}

func (ps *Pods) newPod(id string, req RunRequest) *Pod {
	p := &Pod{
		pods:       ps,
		id:         id,
		dir:        filepath.Join(ps.Dir, id),
		config:     req.Config,
		containers: map[string]*Container{},
	}
	p.listed = sync.OnceValue(p.measure)
	p.rec = podRecord{State: podCreating, lastingPod: lastingPod{
		ID:       id,
		Boot:     ps.boot,
		Handler:  req.Handler,
		Builtin:  req.Builtin,
		Detached: p.hostNetwork(),
	}}
	return p
}

// run makes the pod, or removes what it made of it.
func (p *Pod) run(ctx context.Context) error {
	err := p.make(ctx)
	if err == nil {
		return nil
	}
	err = because(ctx, err)
	cleanup, cancel := p.pods.background.detach(ctx, operationTimeout)
	defer cancel(nil)
	if e := p.remove(cleanup); e != nil {
		klog.ErrorS(e, "Cleaning up after a pod that could not be made; trying again in the background", "pod", p.id)
	}
	return err
}

// make is the creation itself: the record, then effects, each of which remove
// can undo.
func (p *Pod) make(ctx context.Context) error {
	w := stopwatch{pods: p.pods}
	var attachment cni.Attachment
	type step struct {
		name string
		do   func() error
	}
	steps := []step{
		{"record pod", func() error {
			if err := writeNew(p.dir, p.config, p.record()); err != nil {
				return err
			}
			return p.admit(p.dir)
		}},
		{"runtime.MakePod", func() error { return p.makeInKernel(ctx) }},
		{"network.Add", func() (err error) {
			if !p.hostNetwork() {
				attachment, err = p.pods.Network.Add(ctx, p.cni())
			}
			return err
		}},
	}
	if sysctls := p.networkSysctls(); len(sysctls) > 0 {
		steps = append(steps, step{"runtime.TuneNetwork", func() error {
			return refusedSysctl(p.runtime().TuneNetwork(ctx, p.oci(), sysctls))
		}})
	}
	steps = append(steps, step{"files", func() error { return p.writeFiles(attachment) }})
	for _, s := range steps {
		if err := w.effect(ctx, s.name, s.do); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return p.change(podMade, func(rec *podRecord) {
		rec.CreatedAt = time.Now()
		rec.Attachment = attachment
		rec.Steps = w.steps
	})
}

// makeInKernel makes what the kernel has of the pod.
func (p *Pod) makeInKernel(ctx context.Context) (err error) {
	pod := p.oci()
	if pod.FilesSize, err = p.filesSize(); err != nil {
		return err
	}
	return refusedSysctl(p.runtime().MakePod(ctx, pod))
}

// because adds to err why ctx ended, if it did: a step that was cut short says
// only that it was.
func because(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil && !errors.Is(err, cause) {
		return fmt.Errorf("%w: %w", cause, err)
	}
	return err
}

// writeFiles writes the files that the pod's containers share: hostname, hosts
// and resolv.conf. They are the containers' to read, and their root's to write, so
// 0644 below a directory of 0700.
func (p *Pod) writeFiles(at cni.Attachment) error {
	files, err := podFiles(p.config, p.hostname(), at.IPs, os.ReadFile)
	if err != nil {
		return err
	}
	for name, content := range files {
		if err := writeFile(filepath.Join(p.oci().Files(), name), content, 0o644); err != nil {
			return err
		}
	}
	return nil
}
