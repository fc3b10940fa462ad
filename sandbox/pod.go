package sandbox

import (
	"errors"
	"io/fs"
	"path/filepath"
	"sync"
	"syscall"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/cni"
	"berth/oci"
)

// Pod is one pod sandbox. It stays valid after its removal: its methods then say
// that it is gone.
type Pod struct {
	pods   *Pods
	id     string
	dir    string
	config *runtimeapi.PodSandboxConfig // never changes
	listed func() int                   // measure, once

	slot    slot
	writing sync.Mutex // see doc.go

	mu         sync.Mutex
	rec        podRecord
	containers map[string]*Container
	refused    int // failed network detachments that callers were told of
	retries    retries
}

// Container is one container of a pod. It stays valid after its removal.
type Container struct {
	pod    *Pod
	id     string
	dir    string
	config *runtimeapi.ContainerConfig // never changes
	listed func() int                  // measure, once

	slot    slot
	writing sync.Mutex
	exited  chan struct{} // closed when the record says that it has exited

	rec     containerRecord // guarded by pod.mu
	retries retries         // guarded by pod.mu
}

// ID is 64 hex digits.
func (p *Pod) ID() string { return p.id }

// ID is 64 hex digits.
func (c *Container) ID() string { return c.id }

// Pod is the pod that the container belongs to.
func (c *Container) Pod() *Pod { return c.pod }

func (p *Pod) record() podRecord {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.rec
}

func (c *Container) record() containerRecord {
	c.pod.mu.Lock()
	defer c.pod.mu.Unlock()
	return c.rec
}

// change moves the pod by event ("": it stays in its state) and lets edit fill
// in the rest of the new record: on disk first, then in memory. edit may be nil.
func (p *Pod) change(event podEvent, edit func(*podRecord)) error {
	name := "record pod " + string(event)
	err := p.pods.effect(p.pods.background.ctx, name, func() error {
		p.writing.Lock()
		defer p.writing.Unlock()
		rec := p.record()
		if event != "" {
			next, err := podStates.next(rec.State, event)
			if err != nil {
				return err
			}
			rec.State = next
		}
		if edit != nil {
			edit(&rec)
		}
		if err := rewrite(p.dir, rec, rec.State == podRemoving); err != nil {
			return err
		}
		p.mu.Lock()
		p.rec = rec
		p.mu.Unlock()
		return nil
	})
	p.pods.mirror.touch(p.id)
	return err
}

// change is Pod.change for a container.
func (c *Container) change(event containerEvent, edit func(*containerRecord)) error {
	name := "record container " + string(event)
	err := c.pod.pods.effect(c.pod.pods.background.ctx, name, func() error {
		c.writing.Lock()
		defer c.writing.Unlock()
		rec := c.record()
		if event != "" {
			next, err := containerStates.next(rec.State, event)
			if err != nil {
				return err
			}
			rec.State = next
		}
		if edit != nil {
			edit(&rec)
		}
		if err := rewrite(c.dir, rec, rec.State == containerRemoving); err != nil {
			return err
		}
		c.pod.mu.Lock()
		c.rec = rec
		c.pod.mu.Unlock()
		if event == containerExit || event == containerLost {
			c.closeExited()
		}
		return nil
	})
	c.pod.pods.mirror.touch(c.pod.id)
	return err
}

// rewrite replaces the record in dir. One that is being removed may have lost
// its directory already, or never have had one: that says the same. Where there is
// no room for its record, the removal makes some; should it be cut short, it begins
// again with what the older record says.
func rewrite(dir string, record any, removing bool) error {
	err := writeJSON(filepath.Join(dir, recordFile), record)
	if removing && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOSPC)) {
		return nil
	}
	return err
}

// closeExited wakes those who wait for the exit. The caller holds c.writing or
// is alone with c.
func (c *Container) closeExited() {
	select {
	case <-c.exited:
	default:
		close(c.exited)
	}
}

// all returns the pod's containers, invisible ones included.
func (p *Pod) all() []*Container {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := make([]*Container, 0, len(p.containers))
	for _, c := range p.containers {
		list = append(list, c)
	}
	return list
}

// each calls do for all containers of the pod at once and joins the errors.
func (p *Pod) each(do func(*Container) error) error {
	list := p.all()
	errs := make([]error, len(list))
	var wg sync.WaitGroup
	for i, c := range list {
		wg.Go(func() { errs[i] = do(c) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// cgroup is where the pod's containers live, and whether Berth made it.
func (p *Pod) cgroup() (path string, owned bool) {
	if parent := p.config.GetLinux().GetCgroupParent(); parent != "" {
		return parent, false
	}
	return oci.CgroupRoot + "/" + p.id, true
}

func (p *Pod) namespaces() *runtimeapi.NamespaceOption {
	return p.config.GetLinux().GetSecurityContext().GetNamespaceOptions()
}

func (p *Pod) hostNetwork() bool { return hostNetwork(p.config) }

func hostNetwork(c *runtimeapi.PodSandboxConfig) bool {
	return c.GetLinux().GetSecurityContext().GetNamespaceOptions().GetNetwork() == runtimeapi.NamespaceMode_NODE
}

// shmSize is the usual size of a pod's /dev/shm in Kubernetes, in bytes.
const shmSize = 64 << 20

// oci is the pod as its runtime knows it.
func (p *Pod) oci() oci.Pod {
	cgroup, owned := p.cgroup()
	ns := p.namespaces()
	return oci.Pod{
		ID:         p.id,
		Dir:        p.dir,
		Cgroup:     cgroup,
		OwnsCgroup: owned,
		Users:      p.users(),
		HostNet:    p.hostNetwork(),
		HostIPC:    ns.GetIpc() == runtimeapi.NamespaceMode_NODE,
		SharedPID:  ns.GetPid() == runtimeapi.NamespaceMode_POD,
		Hostname:   p.hostname(),
		Sysctls:    p.sysctls(),
		ShmSize:    shmSize,
	}
}

// cni is the pod as its network knows it.
func (p *Pod) cni() cni.Pod {
	meta := p.config.GetMetadata()
	return cni.Pod{
		ID:        p.id,
		NetNS:     p.oci().NetNS(),
		Name:      meta.GetName(),
		Namespace: meta.GetNamespace(),
		UID:       meta.GetUid(),
		Ports:     ports(p.config.GetPortMappings()),
		Builtin:   p.record().Builtin,
	}
}

// oci is the container as its runtime knows it.
func (c *Container) oci() oci.Container {
	cgroup, _ := c.pod.cgroup()
	return oci.Container{ID: c.id, Dir: c.dir, Cgroup: cgroup + "/" + c.id, Users: c.pod.users()}
}

// runtime is the OCI runtime of the pod's handler. Where that one is no longer
// configured the default one cleans up after it: what they hold of the kernel is
// the same. Nothing is started there (see startable).
func (p *Pod) runtime() Runtime {
	if r, ok := p.pods.handler(p.record().Handler); ok {
		return r
	}
	return p.pods.Runtimes[p.pods.DefaultRuntime]
}
