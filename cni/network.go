package cni

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/utils"
)

// IfName is a pod's interface in its network namespace, as Kubernetes has it.
const IfName = "eth0"

// Network attaches pods to the node's pod network (CNI spec 1.1). The exported
// fields are set once, before the first call; the methods may be called at once
// by many goroutines. A Network is not copied.
type Network struct {
	ConfDir  string         // operator's network configuration, e.g. /etc/cni/net.d; read at each use, so that a new file wins at once
	BinDirs  []string       // where plugins are looked for, in order
	CacheDir string         // what is attached, see the package's comment; survives a reboot
	Builtin  atomic.Bool    // the built-in network serves every pod when ConfDir has no configuration; may change at any time
	Subnets  []netip.Prefix // of the built-in network, at most one an IP family; empty: 10.231.0.0/16 and fdbe:7268:b0::/64
	Timeout  time.Duration  // of one whole ADD or DEL, > 0; a plugin still running then is killed with its children

	pods podLocks

	// adding is read-locked by each ADD. The plugins' GC takes it whole: an
	// attachment made meanwhile would not be in the list that it keeps.
	adding sync.RWMutex

	builtinMu sync.Mutex // guards: bridge and addresses exist while any record of the built-in network does

	ownMu sync.Mutex
	own   map[string]bool // pods whose record this process wrote; true: since the last GC began

	reportedMu sync.Mutex
	reported   string // the last complaint about invalid files, so that each is logged once

	status statusCache
}

// Pod is what a network needs to know of one pod.
type Pod struct {
	ID                   string // also the CNI container id
	NetNS                string // path of the pinned network namespace; whoever made it has it refuse router advertisements
	Name, Namespace, UID string // passed as K8S_POD_* in CNI_ARGS
	Ports                []PortMapping
	Builtin              bool // use the built-in network for this pod where ConfDir has none
}

// PortMapping publishes a port of the pod on the host.
type PortMapping struct {
	HostIP        netip.Addr // zero: all addresses
	HostPort      uint16     // 0: not published
	ContainerPort uint16
	Protocol      string // "tcp", "udp" or "sctp"
}

// Attachment is what a pod got from its network.
type Attachment struct {
	IPs       []netip.Addr // of the pod, the primary one first
	Interface string       // host side interface name where the result names one, else empty
}

// validate refuses what would reach plugins as something else than it is: an id
// that is a path, a name that ends its CNI_ARGS pair and begins another.
func (p Pod) validate() error {
	if err := utils.ValidateContainerID(p.ID); err != nil {
		return fmt.Errorf("pod id %q: %w", p.ID, err)
	}
	if p.NetNS == "" {
		return errors.New("pod has no network namespace")
	}
	for field, value := range map[string]string{"name": p.Name, "namespace": p.Namespace, "uid": p.UID} {
		if strings.ContainsAny(value, ";=\x00") {
			return fmt.Errorf("pod %s %q: must not contain ';', '=' or NUL", field, value)
		}
	}
	for _, m := range p.Ports {
		switch {
		case m.Protocol != "tcp" && m.Protocol != "udp" && m.Protocol != "sctp":
			return fmt.Errorf("port mapping %d: protocol %q is none of tcp, udp, sctp", m.HostPort, m.Protocol)
		case m.HostPort != 0 && m.ContainerPort == 0:
			return fmt.Errorf("port mapping %d: no container port", m.HostPort)
		}
	}
	return nil
}

// A portMapping is one entry of the capability argument of that name
// (CNI CONVENTIONS.md). Without a hostIP it holds for each IP family that the
// pod has an address of.
type portMapping struct {
	HostPort      uint16 `json:"hostPort"`
	ContainerPort uint16 `json:"containerPort"`
	Protocol      string `json:"protocol"`
	HostIP        string `json:"hostIP,omitempty"`
}

// args is what plugins are told of the pod in CNI_ARGS.
func (p Pod) args() [][2]string {
	return [][2]string{
		{"IgnoreUnknown", "1"},
		{"K8S_POD_NAMESPACE", p.Namespace},
		{"K8S_POD_NAME", p.Name},
		{"K8S_POD_INFRA_CONTAINER_ID", p.ID},
		{"K8S_POD_UID", p.UID},
	}
}

// capabilities is what plugins are told that declare the capability.
func (p Pod) capabilities() map[string]any {
	if mappings := p.portMappings(); len(mappings) > 0 {
		return map[string]any{"portMappings": mappings}
	}
	return nil
}

func (p Pod) portMappings() []portMapping {
	var mappings []portMapping
	for _, m := range p.Ports {
		if m.HostPort == 0 {
			continue
		}
		mapping := portMapping{HostPort: m.HostPort, ContainerPort: m.ContainerPort, Protocol: m.Protocol}
		if m.HostIP.IsValid() {
			mapping.HostIP = m.HostIP.String()
		}
		mappings = append(mappings, mapping)
	}
	return mappings
}

// libcni is the library with our plugin runner and our cache.
func (n *Network) libcni() *libcni.CNIConfig {
	return n.libcniWith(searchPath)
}

func (n *Network) libcniWith(searchPath string) *libcni.CNIConfig {
	return libcni.NewCNIConfigWithCacheDir(n.BinDirs, n.CacheDir, &plugins{searchPath: searchPath})
}

// libcniFor is libcni for the network of an attachment.
func (n *Network) libcniFor(rec *record) (*libcni.CNIConfig, error) {
	if !rec.Builtin {
		return n.libcni(), nil
	}
	programs, err := n.builtinPrograms()
	if err != nil {
		return nil, err
	}
	return n.libcniWith(programs), nil
}

// withTimeout bounds one whole ADD or DEL. The error of a plugin that was killed
// for it says how long it had.
func (n *Network) withTimeout(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, d, fmt.Errorf("no end after %v: %w", d, context.DeadlineExceeded))
}

// podLocks lets one call at a time touch a pod's attachment.
type podLocks struct {
	mu    sync.Mutex
	locks map[string]*podLock
}

type podLock struct {
	turn  chan struct{} // holds one token while the lock is held
	users int           // who holds or awaits it; guarded by podLocks.mu
}

// lock waits for its turn, or for the end of ctx.
func (l *podLocks) lock(ctx context.Context, id string) (unlock func(), err error) {
	lock := l.enter(id)
	select {
	case lock.turn <- struct{}{}:
		return func() { <-lock.turn; l.leave(id, lock) }, nil
	case <-ctx.Done():
		l.leave(id, lock)
		return nil, fmt.Errorf("wait for an earlier call for pod %s: %w", id, context.Cause(ctx))
	}
}

func (l *podLocks) enter(id string) *podLock {
	l.mu.Lock()
	defer l.mu.Unlock()
	lock := l.locks[id]
	if lock == nil {
		lock = &podLock{turn: make(chan struct{}, 1)}
		if l.locks == nil {
			l.locks = map[string]*podLock{}
		}
		l.locks[id] = lock
	}
	lock.users++
	return lock
}

func (l *podLocks) leave(id string, lock *podLock) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if lock.users--; lock.users == 0 {
		delete(l.locks, id)
	}
}
