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

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"berth/cni"
)

// mirrored is a pod as it survives a reboot of the node: enough to report it and
// to clean up after it. It never holds an environment or another part of a
// config that may be secret.
type mirrored struct {
	ID          string
	Boot        string
	Name        string
	Namespace   string
	UID         string
	Attempt     uint32
	Labels      map[string]string
	Annotations map[string]string
	Handler     string
	Builtin     bool
	HostNetwork bool
	LogDir      string
	CreatedAt   time.Time
	Attachment  cni.Attachment
	Detached    bool
	Containers  []mirroredContainer
}

type mirroredContainer struct {
	ID          string
	Name        string
	Attempt     uint32
	Labels      map[string]string
	Annotations map[string]string
	ImageName   string
	Image       imageRecord
	LogPath     string
	CreatedAt   time.Time
	StartedAt   time.Time
	FinishedAt  time.Time
	ExitCode    int
	Reason      string
	Message     string
	User        specs.User
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
	rec, meta := p.record(), p.config.GetMetadata()
	m := mirrored{
		ID:          p.id,
		Boot:        rec.Boot,
		Name:        meta.GetName(),
		Namespace:   meta.GetNamespace(),
		UID:         meta.GetUid(),
		Attempt:     meta.GetAttempt(),
		Labels:      p.config.GetLabels(),
		Annotations: p.config.GetAnnotations(),
		Handler:     rec.Handler,
		Builtin:     rec.Builtin,
		HostNetwork: p.hostNetwork(),
		LogDir:      p.config.GetLogDirectory(),
		CreatedAt:   rec.CreatedAt,
		Attachment:  rec.Attachment,
		Detached:    rec.Detached,
	}
	for _, c := range p.Containers() {
		rec, meta := c.record(), c.config.GetMetadata()
		m.Containers = append(m.Containers, mirroredContainer{
			ID:          c.id,
			Name:        meta.GetName(),
			Attempt:     meta.GetAttempt(),
			Labels:      c.config.GetLabels(),
			Annotations: c.config.GetAnnotations(),
			ImageName:   c.config.GetImage().GetImage(),
			Image:       rec.Image,
			LogPath:     c.config.GetLogPath(),
			CreatedAt:   rec.CreatedAt,
			StartedAt:   rec.StartedAt,
			FinishedAt:  rec.FinishedAt,
			ExitCode:    rec.ExitCode,
			Reason:      rec.Reason,
			Message:     rec.Message,
			User:        rec.User,
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
			klog.InfoS("Dropping what was mirrored of a pod", "file", path, "reason", err)
			if err := discard(path); err != nil {
				return err
			}
		}
	}
	return nil
}

// errOfThisBoot: the pod was removed, and the file not yet.
var errOfThisBoot = errors.New("it was removed")

func (ps *Pods) restorePod(path, name string) error {
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
		return errOfThisBoot
	}
	p := ps.newPod(m.ID, RunRequest{Config: m.config(), Handler: m.Handler, Builtin: m.Builtin})
	p.rec.State = podNotReady
	p.rec.CreatedAt = m.CreatedAt
	p.rec.Attachment = m.Attachment
	p.rec.Detached = m.Detached
	// Its directory appears whole: half of it would be a pod that has lost
	// containers.
	staging := p.dir + ".new"
	if err := os.RemoveAll(staging); err != nil {
		return err
	}
	if err := writeNew(staging, p.config, p.rec); err != nil {
		return err
	}
	for _, mc := range m.Containers {
		if !isID(mc.ID) {
			return fmt.Errorf("it has a container %q", mc.ID)
		}
		c := p.newContainer(mc.ID, mc.config())
		c.rec = mc.record(c.rec)
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

// record fills in rec, a new one: whatever it was doing, the reboot ended it.
func (m *mirroredContainer) record(rec containerRecord) containerRecord {
	rec.State = containerExited
	rec.Image = m.Image
	rec.CreatedAt, rec.StartedAt, rec.FinishedAt = m.CreatedAt, m.StartedAt, m.FinishedAt
	rec.ExitCode, rec.Reason, rec.Message = m.ExitCode, m.Reason, m.Message
	rec.User = m.User
	if m.FinishedAt.IsZero() {
		rec.lost()
	}
	return rec
}
