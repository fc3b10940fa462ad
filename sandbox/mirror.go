package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"
)

// mirrored is a pod as it survives a reboot of the node: enough to report it and
// to clean up after it. Of its config it has what is named here, and never an
// environment or another part that may be secret.
type mirrored struct {
	lastingPod
	Name        string
	Namespace   string
	UID         string
	Attempt     uint32
	Labels      map[string]string
	Annotations map[string]string
	HostNetwork bool
	LogDir      string
	Containers  []mirroredContainer
}

type mirroredContainer struct {
	lastingContainer
	Name        string
	Attempt     uint32
	Labels      map[string]string
	Annotations map[string]string
	ImageName   string
	LogPath     string
}

// mirror writes the mirror in the background, a group of changes at a time. A
// crash loses the last group at most; the records of this boot do not depend on
// it.
type mirror struct {
	dir  string        // empty: there is none
	wake chan struct{} // has an element when dirty is not empty

	mu    sync.Mutex
	dirty map[string]bool // ids of pods whose file is to be written or removed
}

// mirrorDelay groups the changes of about one pod's start.
const mirrorDelay = time.Second

func newMirror(dir string) *mirror {
	return &mirror{dir: dir, wake: make(chan struct{}, 1), dirty: map[string]bool{}}
}

// touch says that the pod has changed or gone.
func (m *mirror) touch(id string) {
	if m.dir == "" {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dirty[id] = true
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

func (m *mirror) take() map[string]bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	dirty := m.dirty
	m.dirty = map[string]bool{}
	return dirty
}

// keepMirror runs until close, and then writes what is left.
func (ps *Pods) keepMirror() {
	b := ps.background
	for open := true; open; {
		select {
		case <-ps.mirror.wake:
			open = b.pause(mirrorDelay)
		case <-b.ctx.Done():
			open = false
		}
		for id := range ps.mirror.take() {
			if err := ps.writeMirror(id); err != nil {
				klog.ErrorS(err, "Writing what survives a reboot; trying again", "pod", id)
				b.later(mirrorDelay, func() { ps.mirror.touch(id) })
			}
		}
	}
}

func (ps *Pods) writeMirror(id string) error {
	ps.mu.Lock()
	p := ps.pods[id]
	ps.mu.Unlock()
	path := filepath.Join(ps.Mirror, id)
	// Not bounded by the background's context: the last group is written when
	// that has ended.
	return ps.effect(context.Background(), "mirror", func() error {
		if p == nil || !p.visible() {
			return discard(path)
		}
		return writeJSON(path, p.mirrored())
	})
}

func (p *Pod) mirrored() mirrored {
	meta := p.config.GetMetadata()
	m := mirrored{
		lastingPod:  p.record().lastingPod,
		Name:        meta.GetName(),
		Namespace:   meta.GetNamespace(),
		UID:         meta.GetUid(),
		Attempt:     meta.GetAttempt(),
		Labels:      p.config.GetLabels(),
		Annotations: p.config.GetAnnotations(),
		HostNetwork: p.hostNetwork(),
		LogDir:      p.config.GetLogDirectory(),
	}
	for _, c := range p.Containers() {
		meta := c.config.GetMetadata()
		m.Containers = append(m.Containers, mirroredContainer{
			lastingContainer: c.record().lastingContainer,
			Name:             meta.GetName(),
			Attempt:          meta.GetAttempt(),
			Labels:           c.config.GetLabels(),
			Annotations:      c.config.GetAnnotations(),
			ImageName:        c.config.GetImage().GetImage(),
			LogPath:          c.config.GetLogPath(),
		})
	}
	return m
}

// restore makes records of what the mirror knows of an earlier boot. What it
// still has of this boot is of pods that are gone.
func (ps *Pods) restore() error {
	if ps.Mirror == "" {
		return nil
	}
	if err := os.MkdirAll(ps.Mirror, 0o700); err != nil {
		return err
	}
	entries, err := os.ReadDir(ps.Mirror)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if ps.pods[entry.Name()] != nil {
			continue
		}
		path := filepath.Join(ps.Mirror, entry.Name())
		if err := ps.restorePod(path, entry.Name()); err != nil {
			level := klog.Level(0)
			if errors.Is(err, errRemoved) {
				level = 2
			}
			klog.V(level).InfoS("Dropping what was mirrored of a pod", "file", path, "reason", err)
			if err := discard(path); err != nil {
				return err
			}
		}
	}
	return nil
}

// errRemoved: the mirror of a pod outlived it, as it does when a daemon ends at once.
var errRemoved = errors.New("it was removed")

func (ps *Pods) restorePod(path, name string) (err error) {
	if strings.HasSuffix(name, ".new") {
		return errors.New("its file was not finished")
	}
	var m mirrored
	if err := readJSON(path, &m); err != nil {
		return err
	}
	if m.ID != name || !isID(name) {
		return fmt.Errorf("its file names %q", m.ID)
	}
	if m.Boot == ps.boot {
		return errRemoved // in this boot, and the file not yet
	}
	p := ps.newPod(m.ID, RunRequest{Config: m.config()})
	p.rec = m.record(ps.boot)
	// Its directory appears whole: half of it would be a pod that has lost
	// containers.
	staging := p.dir + ".new"
	if err := os.RemoveAll(staging); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(staging))
		}
	}()
	if err := writeNew(staging, p.config, p.rec); err != nil {
		return err
	}
	for _, mc := range m.Containers {
		if !isID(mc.ID) {
			return fmt.Errorf("it has a container %q", mc.ID)
		}
		c := p.newContainer(mc.ID, mc.config())
		c.rec = mc.record()
		if err := writeNew(filepath.Join(staging, "c", c.id), c.config, c.rec); err != nil {
			return err
		}
		c.closeExited()
		p.containers[c.id] = c
	}
	if err := os.Rename(staging, p.dir); err != nil {
		return err
	}
	ps.addLocked(p)
	return nil
}

func (m *mirrored) config() *runtimeapi.PodSandboxConfig {
	config := &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: m.Name, Namespace: m.Namespace, Uid: m.UID, Attempt: m.Attempt},
		Labels:       m.Labels,
		Annotations:  m.Annotations,
		LogDirectory: m.LogDir,
	}
	if m.HostNetwork {
		config.Linux = &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE},
		}}
	}
	return config
}

func (m *mirroredContainer) config() *runtimeapi.ContainerConfig {
	return &runtimeapi.ContainerConfig{
		Metadata:    &runtimeapi.ContainerMetadata{Name: m.Name, Attempt: m.Attempt},
		Image:       &runtimeapi.ImageSpec{Image: m.ImageName},
		Labels:      m.Labels,
		Annotations: m.Annotations,
		LogPath:     m.LogPath,
	}
}

// record is the pod's in this boot: nothing of it runs, and its network may
// still hold what it was given.
func (m *mirrored) record(boot string) podRecord {
	rec := podRecord{lastingPod: m.lastingPod, State: podNotReady}
	rec.Boot = boot
	return rec
}

// record is the container's: whatever it was doing, the reboot ended it.
func (m *mirroredContainer) record() containerRecord {
	rec := containerRecord{lastingContainer: m.lastingContainer, State: containerExited}
	rec.lost()
	return rec
}
