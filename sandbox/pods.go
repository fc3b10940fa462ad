package sandbox

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"berth/cni"
	"berth/image"
	"berth/oci"
)

// Runtime is what pods need of one OCI runtime and the kernel; *oci.Runtime.
// Every method may be called again after a failure or a crash: it finishes what
// the last call began and tolerates what is missing.
type Runtime interface {
	// UserNamespaces says why no pod can have a user namespace here; nil: pods can.
	UserNamespaces() error
	// MakePod makes and pins the pod's namespaces, /dev/shm, Files and cgroup.
	// *oci.SysctlError if the kernel refuses one of the pod's sysctls.
	MakePod(ctx context.Context, p oci.Pod) error
	// TuneNetwork writes sysctls in the pod's network namespace, in which plugins
	// have made the interfaces by now; *oci.SysctlError as above.
	TuneNetwork(ctx context.Context, p oci.Pod, sysctls map[string]string) error
	// RemovePod undoes MakePod, and kills whatever lives in the pod's own
	// cgroup and pid namespace.
	RemovePod(ctx context.Context, p oci.Pod) error
	// Start runs the container's first process and returns its pid on the host.
	// A second Start of a container that runs, or has run, starts nothing and
	// returns the same pid; Wait then tells how it ended.
	Start(ctx context.Context, s oci.Start) (pid int, err error)
	// Left waits until no start that a crash has left is under way, and returns the
	// root that it had; nil for none. That one must not be made anew.
	Left(ctx context.Context, c oci.Container) (root *os.File, err error)
	// Wait blocks until the container's first process has ended and all its
	// output is in the log. oci.ErrExitUnknown if nobody saw the exit code.
	Wait(ctx context.Context, c oci.Container) (oci.Exit, error)
	// Signal sends sig to the container's first process; oci.ErrNotRunning.
	Signal(ctx context.Context, c oci.Container, sig syscall.Signal) error
	// Kill kills every process of the container. Wait then returns.
	Kill(ctx context.Context, c oci.Container) error
	// Remove kills what is left and removes everything that Start made: mounts,
	// cgroup, the runtime's state, FIFOs. Nil for what was never started.
	Remove(ctx context.Context, c oci.Container) error
	// Exec runs a process in the container and returns its exit code. When ctx
	// ends, the process and its descendants are killed.
	Exec(ctx context.Context, e oci.Exec) (code int, err error)
	// Attach copies between the container's streams and a client's until the
	// container or ctx ends. oci.ErrNotRunning, oci.ErrNoStdin, oci.ErrTooSlow,
	// oci.ErrDetached.
	Attach(ctx context.Context, a oci.Attach) error
	// CloseStdin ends the container's standard input for good.
	CloseStdin(ctx context.Context, c oci.Container) error
	// Dial connects to a TCP port of the pod's loopback.
	Dial(ctx context.Context, p oci.Pod, port uint16) (oci.Conn, error)
	// ReopenLog makes all further output go to log.
	ReopenLog(ctx context.Context, c oci.Container, log *os.File) error
	// Stats reads what a running container uses; oci.ErrNotRunning.
	Stats(ctx context.Context, c oci.Container) (oci.Usage, error)
	// PodStats reads what a pod uses, with the processes of the containers named.
	PodStats(ctx context.Context, p oci.Pod, containers []oci.Container) (oci.PodUsage, error)
	// Limits reads what u would change of a running container, Update changes it
	// without a restart, and Restore puts back what Limits has read.
	// oci.ErrNotRunning of the first two.
	Limits(ctx context.Context, c oci.Container, u oci.Update) (oci.Limits, error)
	Update(ctx context.Context, c oci.Container, u oci.Update) error
	Restore(ctx context.Context, c oci.Container, l oci.Limits) error
	// Features are what it can do that others cannot.
	Features() oci.Features
	// GC destroys what the kernel and the runtime hold under Berth's names for
	// pods and containers whose id keep does not have. It looks for them first
	// and asks keep then: ids come into being while it looks.
	GC(ctx context.Context, keep func(id string) bool) error
}

// Network is *cni.Network.
type Network interface {
	Add(ctx context.Context, p cni.Pod) (cni.Attachment, error)
	// Del detaches; nil for what is not attached.
	Del(ctx context.Context, p cni.Pod) error
	// GC detaches every pod of the cache whose id keep does not have. What was
	// attached since keep was made, it leaves.
	GC(ctx context.Context, keep map[string]bool) error
}

// Images is *image.Store.
type Images interface {
	// Image finds an image by tag, digest reference or id; image.ErrNotFound.
	Image(ref string) (*image.Image, error)
	// Root makes container id's writable layer over img and returns it as a
	// detached mount. It may be called again; the layer's content stays. Until
	// RemoveRoot the image's layers are kept, also when the image is removed. Of
	// img it needs ID and Layers. It shows users, nil for the host's, the owners
	// that the image names.
	Root(ctx context.Context, id string, img *image.Image, users *image.Users) (*os.File, error)
	// View is img as a detached read-only mount for container id, which has a
	// writable layer, and lasts as long as that. Otherwise it is as Root.
	View(ctx context.Context, id string, img *image.Image, users *image.Users) (*os.File, error)
	// Volumes makes the directories i that begin with what root, the container's,
	// has at paths[i], and returns the directory that holds them as a detached
	// mount. They last as long as the writable layer. Otherwise it is as Root.
	Volumes(ctx context.Context, id string, root *os.File, paths []string, users *image.Users) (*os.File, error)
	// RemoveRoot deletes the writable layer, the views and the volumes; nil if there
	// is none.
	RemoveRoot(ctx context.Context, id string) error
	// Roots lists the ids that have a writable layer.
	Roots() []string
	// RootUsage is what a writable layer took when it was measured last, from
	// memory.
	RootUsage(id string) image.Usage
}

// Pods are the pods of this node. The exported fields are set before Open and
// not changed after it.
type Pods struct {
	Dir    string // records of this boot, e.g. /run/berth/pods; made if missing
	Mirror string // what survives a reboot, e.g. /var/lib/berth/pods; empty: nothing does

	DefaultRuntime string             // key of Runtimes that serves the handler ""
	Runtimes       map[string]Runtime // by runtime handler
	Network        Network
	Images         Images

	UnprivilegedPorts bool // processes in a pod's own network may listen on any port
	UnprivilegedPing  bool // and send ICMP echo requests

	// Listening are the TCP addresses of this host on which berthd itself listens.
	// They are not for a pod's host ports, which would redirect them.
	Listening []netip.AddrPort

	NoFile uint64        // RLIMIT_NOFILE of containers, as far as OpenFiles allows; 0: 1048576
	Sweep  time.Duration // between two searches for what no record knows; 0: ten minutes

	boot       string // boot id of this kernel
	node       node   // what this machine can give
	background *background
	mirror     *mirror

	// hook is called before (after = false) and after every effect. Tests count,
	// fail and crash there.
	hook func(effect string, after bool) error

	mu         sync.Mutex
	pods       map[string]*Pod
	containers map[string]*Container
	identities map[identity]*Pod // those that a Run with the same identity finds
	uids       map[string][]*Pod // by label io.kubernetes.pod.uid
}

// identity is what makes two RunPodSandbox calls the same.
type identity struct {
	name, namespace, uid string
	attempt              uint32
}

func (p *Pod) identity() identity {
	meta := p.config.GetMetadata()
	return identity{meta.GetName(), meta.GetNamespace(), meta.GetUid(), meta.GetAttempt()}
}

// newID returns 64 hex digits that nobody has.
func newID() string {
	var b [32]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}
