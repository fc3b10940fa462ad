package sandbox

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"berth/image"
)

// CreateContainer makes a container in the pod, without a process yet (CRI
// CreateContainer). Everything in config is validated here. A second call with
// the same name and attempt joins the first one or returns its container, as
// long as that was not started. When ctx ends it is made all the same. A failed
// call leaves nothing behind. config is kept.
//
// Errors: *InvalidError, ErrNotReady, ErrNotFound (the pod is gone),
// image.ErrNotFound, ErrPreempted, ErrIllegal.
func (p *Pod) CreateContainer(ctx context.Context, config *runtimeapi.ContainerConfig) (*Container, error) {
	if err := p.validateContainer(config); err != nil {
		return nil, err
	}
	c, f, err := p.joinOrCreate(ctx, config)
	if err == nil && f != nil {
		err = f.wait(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("create container %s in pod %s: %w", config.GetMetadata().GetName(), p.id, err)
	}
	return c, nil
}

// joinOrCreate returns the pod's container of config's name and attempt and the
// flight that makes it, nil if it is made already.
func (p *Pod) joinOrCreate(ctx context.Context, config *runtimeapi.ContainerConfig) (*Container, *flight, error) {
	ps := p.pods
	ps.mu.Lock()
	defer ps.mu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.startableLocked(); err != nil {
		return nil, nil, err
	}
	if first := p.namedLocked(config.GetMetadata()); first != nil {
		switch first.rec.State {
		case containerCreated:
			return first, nil, nil
		case containerCreating:
			if f := first.slot.current(); f != nil && f.verb == verbCreate {
				return first, f, nil
			}
		case containerStarting, containerRunning, containerExited:
			return nil, nil, fmt.Errorf("%w: container %s with the same name and attempt is %s; remove it, or use the next attempt", ErrIllegal, first.id, first.rec.State)
		}
		// It is on its way out.
	}
	c := p.newContainer(newID(), config)
	if err := ps.roomLocked("container", c.listed()); err != nil {
		return nil, nil, err
	}
	f, err := c.begin(ctx, &flight{verb: verbCreate}, operationTimeout, c.create)
	if err != nil {
		return nil, nil, err
	}
	p.containers[c.id] = c
	ps.containers[c.id] = c
	return c, f, nil
}

// namedLocked finds the container of this name and attempt, a live one rather
// than one that is being removed.
func (p *Pod) namedLocked(meta *runtimeapi.ContainerMetadata) *Container {
	var found *Container
	for _, c := range p.containers {
		m := c.config.GetMetadata()
		if m.GetName() != meta.GetName() || m.GetAttempt() != meta.GetAttempt() {
			continue
		}
		if found == nil || found.rec.State == containerRemoving {
			found = c
		}
	}
	return found
}

func (p *Pod) newContainer(id string, config *runtimeapi.ContainerConfig) *Container {
	c := &Container{
		pod:    p,
		id:     id,
		dir:    filepath.Join(p.dir, "c", id),
		config: config,
		exited: make(chan struct{}),
		rec:    containerRecord{lastingContainer: lastingContainer{ID: id}, State: containerCreating},
	}
	c.listed = sync.OnceValue(c.measure)
	return c
}

// create makes the container, or removes what it made of it.
func (c *Container) create(ctx context.Context) error {
	err := c.make(ctx)
	if err == nil {
		return nil
	}
	err = because(ctx, err)
	cleanup, cancel := c.pod.pods.background.detach(ctx, operationTimeout)
	defer cancel(nil)
	if e := c.remove(cleanup); e != nil {
		klog.ErrorS(e, "Cleaning up after a container that could not be made; trying again in the background", "container", c.id)
	}
	return err
}

func (c *Container) make(ctx context.Context) (err error) {
	w := stopwatch{pods: c.pod.pods}
	err = w.effect(ctx, "record container", func() error {
		if err := writeNew(c.dir, c.config, c.record()); err != nil {
			return err
		}
		return c.pod.admit(filepath.Dir(c.dir), c.dir)
	})
	if err != nil {
		return err
	}
	img, err := c.pod.pods.Images.Image(c.config.GetImage().GetImage())
	switch {
	case errors.Is(err, image.ErrInvalidReference):
		return &InvalidError{Field: "image.image", Reason: err.Error(), Err: err}
	case err != nil:
		return err // it names the image
	}
	mounted, err := c.imagesMounted()
	if err != nil {
		return err
	}
	fs, err := c.mount(ctx, &w, nil, imageRecord{ID: img.ID, Layers: img.Layers}, mounted)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, fs.close()) }()
	volumes, err := volumesOf(img, c.config.GetMounts(), fs.root)
	if err != nil {
		return err
	}
	if err := c.mountVolumes(ctx, &w, fs, volumes); err != nil {
		return err
	}
	var spec *specs.Spec
	err = w.effect(ctx, "spec", func() error {
		if spec, err = c.describe(ctx, img, fs, mounted, volumes); err != nil {
			return err
		}
		return writeJSON(filepath.Join(c.dir, specFile), spec)
	})
	if err != nil {
		return err
	}
	return c.change(containerMade, func(rec *containerRecord) {
		rec.CreatedAt = time.Now()
		rec.Image = imageRecord{ID: img.ID, Layers: img.Layers, StopSignal: img.Config.Config.StopSignal}
		rec.Image.Name, rec.Image.Ref = img.Names(askedFor(c.config.GetImage()))
		rec.Mounted = mounted
		rec.Volumes = volumes
		rec.User = spec.Process.User
		rec.Resources = c.pod.pods.node.effective(c.config.GetLinux().GetResources())
		rec.Steps = w.steps
	})
}

// askedFor is what the container's creator calls its image. The kubelet puts the
// image's id into image and the pod's word for it beside that.
func askedFor(spec *runtimeapi.ImageSpec) string {
	return cmp.Or(spec.GetUserSpecifiedImage(), spec.GetImage())
}

// describe makes the container's spec of its config, its filesystems and the
// host.
func (c *Container) describe(ctx context.Context, img *image.Image, fs filesystems, mounted map[int]imageRecord, volumes []string) (*specs.Spec, error) {
	facts, err := gather(ctx, c.pod.config, c.config, c.pod.hostname(), img, fs.root, c.pod.pods.node)
	if err != nil {
		return nil, err
	}
	facts.Volumes = volumes
	if err := c.lookInto(fs.views, mounted, facts.HostPaths); err != nil {
		return nil, err
	}
	if facts.OldFiles, err = c.pod.oldFiles(); err != nil {
		return nil, err
	}
	facts.Etc = c.lookAtEtc(fs.views, mounted, facts.HostPaths)
	return Spec(c.pod.oci(), c.oci(), c.config, facts)
}

// readSpec reads the spec that create wrote, with the resources of now.
func (c *Container) readSpec() (*specs.Spec, error) {
	data := new(specs.Spec)
	if err := readJSON(filepath.Join(c.dir, specFile), data); err != nil {
		return nil, fmt.Errorf("read spec: %w", err)
	}
	if r := c.record().Resources; r != nil {
		r.apply(data, c.pod.pods.node.controls)
	}
	return data, nil
}
