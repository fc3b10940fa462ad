package sandbox

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Pod finds a visible pod by its full id, or by a prefix that no other visible
// pod has; ErrNotFound.
func (ps *Pods) Pod(id string) (*Pod, error) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return find("pod", ps.pods, id, (*Pod).visible)
}

// Container finds a visible container as Pod finds a pod.
func (ps *Pods) Container(id string) (*Container, error) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return find("container", ps.containers, id, (*Container).visible)
}

// Find is Pod for Stop and Remove: by its full id it finds also a pod that is
// still being created, which they pre-empt.
func (ps *Pods) Find(id string) (*Pod, error) {
	ps.mu.Lock()
	p := ps.pods[id]
	ps.mu.Unlock()
	if p != nil {
		return p, nil
	}
	return ps.Pod(id)
}

func find[T any](what string, all map[string]*T, id string, visible func(*T) bool) (*T, error) {
	if x := all[id]; x != nil && visible(x) {
		return x, nil
	}
	var found *T
	for full, x := range all {
		if id == "" || !strings.HasPrefix(full, id) || !visible(x) {
			continue
		}
		if found != nil {
			return nil, fmt.Errorf("%s %q: %w: several begin so, give more of it", what, id, ErrNotFound)
		}
		found = x
	}
	if found == nil {
		return nil, fmt.Errorf("%s %q: %w", what, id, ErrNotFound)
	}
	return found, nil
}

// List returns the visible pods, newest first.
func (ps *Pods) List() []*Pod {
	ps.mu.Lock()
	all := slices.Collect(maps.Values(ps.pods))
	ps.mu.Unlock()
	return sortedPods(all)
}

// WithUID returns the visible pods whose label io.kubernetes.pod.uid is uid,
// newest first.
func (ps *Pods) WithUID(uid string) []*Pod {
	ps.mu.Lock()
	all := slices.Clone(ps.uids[uid])
	ps.mu.Unlock()
	return sortedPods(all)
}

// Containers returns the visible containers of all pods, newest first.
func (ps *Pods) Containers() []*Container {
	ps.mu.Lock()
	all := slices.Collect(maps.Values(ps.containers))
	ps.mu.Unlock()
	return sortedContainers(all)
}

// Containers returns the pod's visible containers, newest first.
func (p *Pod) Containers() []*Container { return sortedContainers(p.all()) }

func sortedPods(all []*Pod) []*Pod {
	all = slices.DeleteFunc(all, func(p *Pod) bool { return !p.visible() })
	slices.SortFunc(all, func(a, b *Pod) int {
		return newest(a.record().CreatedAt, b.record().CreatedAt, a.id, b.id)
	})
	return all
}

func sortedContainers(all []*Container) []*Container {
	all = slices.DeleteFunc(all, func(c *Container) bool { return !c.visible() })
	slices.SortFunc(all, func(a, b *Container) int {
		return newest(a.record().CreatedAt, b.record().CreatedAt, a.id, b.id)
	})
	return all
}

func (p *Pod) visible() bool {
	rec := p.record()
	return !rec.CreatedAt.IsZero() && !rec.Dropped && rec.State != podGone
}

func (c *Container) visible() bool {
	rec := c.record()
	return !rec.CreatedAt.IsZero() && rec.State != containerGone
}

// handler returns the runtime that serves handler; "" is the default one.
func (ps *Pods) handler(name string) (Runtime, bool) {
	r, ok := ps.Runtimes[ps.handlerName(name)]
	return r, ok
}

func (ps *Pods) handlerName(name string) string {
	if name == "" {
		return ps.DefaultRuntime
	}
	return name
}

// holds says whether id is a pod or container that has a record, or is about to.
// Ids enter before their first effect and leave after their last.
func (ps *Pods) holds(id string) bool {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return ps.pods[id] != nil || ps.containers[id] != nil
}

// ids are the ids of all pods that have a record, or are about to.
func (ps *Pods) ids() map[string]bool {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	ids := make(map[string]bool, len(ps.pods))
	for id := range ps.pods {
		ids[id] = true
	}
	return ids
}

// UIDLabel is the label by which the kubelet asks for one pod again and again.
const UIDLabel = "io.kubernetes.pod.uid"

// addLocked puts a pod and its containers into the indexes, except identities.
func (ps *Pods) addLocked(p *Pod) {
	ps.pods[p.id] = p
	for _, c := range p.all() {
		ps.containers[c.id] = c
	}
	if uid := p.config.GetLabels()[UIDLabel]; uid != "" {
		ps.uids[uid] = append(ps.uids[uid], p)
	}
}

// forget takes a pod that has no containers left out of the indexes.
func (ps *Pods) forget(p *Pod) {
	ps.mu.Lock()
	delete(ps.pods, p.id)
	if uid := p.config.GetLabels()[UIDLabel]; uid != "" {
		left := slices.DeleteFunc(ps.uids[uid], func(x *Pod) bool { return x == p })
		if ps.uids[uid] = left; len(left) == 0 {
			delete(ps.uids, uid)
		}
	}
	ps.mu.Unlock()
	ps.mirror.touch(p.id)
}

// release lets another pod take p's identity.
func (ps *Pods) release(p *Pod) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if key := p.identity(); ps.identities[key] == p {
		delete(ps.identities, key)
	}
}

// newest orders by time, the later first, then by id.
func newest(a, b time.Time, aID, bID string) int {
	if c := b.Compare(a); c != 0 {
		return c
	}
	if aID < bID {
		return -1
	}
	return 1
}
