package oci

import (
	"errors"
	"fmt"
	"sync"

	"berth/oci/cgroup"

	"github.com/vishvananda/netlink"
)

// A gauge is where the numbers of one container or pod are read again and again:
// its files stay open in between. They are opened at the first reading, and
// closed with the container or pod.
type gauge struct {
	mu      sync.Mutex // held while it is read
	retired bool       // not among the gauges any more: nothing may be opened

	cgroup *cgroup.Dir
	init   *cgroup.Dir     // of a pod's init
	links  *netlink.Handle // in a pod's network namespace, which lives for as long
	cpu    rate
}

// gauges are those of a Runtime.
type gauges struct {
	mu   sync.Mutex
	byID map[string]*gauge // of containers and pods
}

// use calls do with id's gauge, and keeps the gauge if do has opened something.
func (g *gauges) use(id string, do func(*gauge)) {
	one := g.lock(id)
	defer one.mu.Unlock()
	do(one)
	if one.cgroup != nil || one.init != nil || one.links != nil {
		return
	}
	one.retired = true
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.byID[id] == one {
		delete(g.byID, id)
	}
}

// lock returns id's gauge with its mu held. One that was retired while it was
// waited for would be closed by nobody.
func (g *gauges) lock(id string) *gauge {
	for {
		one := g.get(id)
		one.mu.Lock()
		if !one.retired {
			return one
		}
		one.mu.Unlock()
	}
}

func (g *gauges) get(id string) *gauge {
	g.mu.Lock()
	defer g.mu.Unlock()
	one := g.byID[id]
	if one == nil {
		if g.byID == nil {
			g.byID = map[string]*gauge{}
		}
		one = &gauge{}
		g.byID[id] = one
	}
	return one
}

// drop closes what id's gauge has open, after a reading that is under way.
func (g *gauges) drop(id string) {
	g.mu.Lock()
	one := g.byID[id]
	delete(g.byID, id)
	g.mu.Unlock()
	if one == nil {
		return
	}
	one.mu.Lock()
	defer one.mu.Unlock()
	one.retired = true
	for _, dir := range []*cgroup.Dir{one.cgroup, one.init} {
		if dir != nil {
			dir.Close()
		}
	}
	if one.links != nil {
		one.links.Close()
	}
	one.cgroup, one.init, one.links = nil, nil, nil
}

// The rest is called with mu held, and returns cgroup.ErrGone for a cgroup that
// there is not.

// usage reads the cgroup at path.
func (g *gauge) usage(path string) (u Usage, err error) {
	err = g.read(&g.cgroup, path, func(dir *cgroup.Dir) error {
		u.Stats, err = dir.Stats()
		return err
	})
	if err == nil && u.CPU != nil {
		u.NanoCores = g.cpu.add(reading{u.At, u.CPU.Usage})
	}
	return u, err
}

// processes counts those of the container whose cgroup is at path.
func (g *gauge) processes(path string) (n uint64, err error) {
	err = g.read(&g.cgroup, path, func(dir *cgroup.Dir) error {
		n, err = dir.Processes()
		return err
	})
	return n, err
}

// own counts those in the cgroup at path alone, which is held open at.
func (g *gauge) own(at **cgroup.Dir, path string) (n uint64, err error) {
	err = g.read(at, path, func(dir *cgroup.Dir) error {
		n, err = dir.Own()
		return err
	})
	return n, err
}

// read calls do with the cgroup at path, which is held open at. One that was
// removed and has been made again since, as the parent of a pod may be, is opened
// anew.
func (*gauge) read(at **cgroup.Dir, path string, do func(*cgroup.Dir) error) error {
	for {
		held := *at != nil
		if !held {
			dir, err := cgroup.Open(path)
			if err != nil {
				return err
			}
			*at = dir
		}
		err := do(*at)
		if !errors.Is(err, cgroup.ErrGone) {
			if err != nil {
				return fmt.Errorf("read cgroup %s: %w", path, err)
			}
			return nil
		}
		(*at).Close()
		*at = nil
		if !held {
			return err
		}
	}
}
