package oci

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"berth/oci/keeper"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Errors that callers tell apart.
var (
	// ErrNotRunning: the container has no live process.
	ErrNotRunning = errors.New("container is not running")
	// ErrNoStdin: the container has no standard input, or none any more.
	ErrNoStdin = errors.New("container has no open stdin")
	// ErrTooSlow: an attached client has not kept up with the container's
	// output; what came next is lost to it.
	ErrTooSlow = errors.New("the client reads more slowly than the container writes")
	// ErrDetached: the process that served an attachment has died. The container
	// runs on.
	ErrDetached = errors.New("the attachment was lost; attach again")
	// ErrInterrupted: one of Berth's processes has died while a command ran in the
	// container, and what became of the command with it.
	ErrInterrupted = errors.New("interrupted: one of Berth's processes died meanwhile; the command may have run")
	// ErrExitUnknown: the process is gone and nobody saw its exit code.
	ErrExitUnknown = errors.New("exit code is unknown")
)

// RuntimeError is why an OCI runtime started no process, in its own words.
type RuntimeError struct{ Said string }

func (e *RuntimeError) Error() string { return e.Said }

// Runtime runs pods and containers of one runtime handler with one OCI runtime
// binary. The exported fields are set once, before the first call; Probe fills
// in Version and OCIVersion. Every method may be repeated after a failure or a
// crash of any process: it finishes what the last call began. Errors do not name
// the pod or container: the caller knows it.
type Runtime struct {
	Name     string         // of the handler; part of names below Run
	Path     string         // of the binary, absolute
	Run      string         // Berth's run directory
	Keeper   *keeper.Client // shared by all runtimes of the node
	NoUserNS func() error   // why this node gives pods no user namespace, of TryUserNamespaces; nil: it does
	Timeout  time.Duration  // of one runtime command; one still running then is killed whole

	Version    string // what the binary says of itself, e.g. "runc 1.5.0"
	OCIVersion string // written into each spec: the newest that both sides know

	quirks   quirks   // set by Probe
	features Features // set by Probe

	mu    sync.Mutex
	execs map[string]bool // IDs of execs under way; GC leaves them alone

	gauges gauges
}

// Root is the runtime's own state directory (--root).
func (r *Runtime) Root() string { return filepath.Join(r.Run, "runtimes", r.Name) }

// NetNSDir is where network namespaces are pinned: CNI daemons and `ip netns`
// look there.
const NetNSDir = "/run/netns"

// Pod says what the kernel must provide for one pod sandbox. All names derive
// from ID and Dir, so that every operation on it can be repeated.
type Pod struct {
	ID         string
	Dir        string            // run directory, exists
	Cgroup     string            // absolute cgroup path of the pod, its containers live below
	OwnsCgroup bool              // Berth made Cgroup (no cgroup parent was given) and removes it
	Users      *UserNamespace    // of a user namespace of its own, which owns the others; nil: the host's
	HostNet    bool              // no network namespace of its own
	HostIPC    bool              // no ipc namespace and no /dev/shm of its own
	SharedPID  bool              // a pid namespace shared by the containers, held by a tiny init
	Hostname   string            // of the uts namespace; with HostNet the pod shares the host's uts namespace
	Sysctls    map[string]string // validated by the caller; names have dots between their parts, and slashes for dots in them
	ShmSize    int64             // bytes of /dev/shm
	FilesSize  int64             // bytes of Files
}

// Paths of what a pod pins. They exist after MakePod for namespaces of the
// pod's own.
func (p Pod) NetNS() string  { return filepath.Join(NetNSDir, "berth-"+p.ID) }
func (p Pod) UserNS() string { return filepath.Join(p.Dir, "ns", "user") }
func (p Pod) IPCNS() string  { return filepath.Join(p.Dir, "ns", "ipc") }
func (p Pod) UTSNS() string  { return filepath.Join(p.Dir, "ns", "uts") }
func (p Pod) PIDNS() string  { return filepath.Join(p.Dir, "ns", "pid") }
func (p Pod) Shm() string    { return filepath.Join(p.Dir, "shm") }

// Files is a small filesystem of the pod's own, for files that its containers may
// write to. It exists from MakePod to RemovePod.
func (p Pod) Files() string { return filepath.Join(p.Dir, "etc") }

// Container names one container (created or running) to the runtime.
type Container struct {
	ID     string
	Dir    string         // run directory: FIFOs, bundle, exit record; exists
	Cgroup string         // absolute cgroup path of the container
	Users  *UserNamespace // of the pod; nil: the host's
}

// RootFS is where the container's root is mounted while it runs; it is the
// spec's root.path.
func (c Container) RootFS() string { return filepath.Join(c.Dir, "rootfs") }

// MaxViews is how many images a container can have mounted beside its root.
const MaxViews = 32

// View is where the view name of Start.Views is mounted from Start to Remove;
// mounts of the spec have it, or what is below it, as their source.
func (c Container) View(name string) string { return filepath.Join(c.views(), name) }

func (c Container) views() string { return filepath.Join(c.Dir, "views") }

// PIDNS is where the pid namespace of Start.Target is pinned, from Start to
// Remove; it is what the spec names.
func (c Container) PIDNS() string { return filepath.Join(c.Dir, "pidns") }

// Start says how a container's process begins. Files are borrowed: Start
// duplicates what it keeps, the caller closes its own.
type Start struct {
	Container
	Spec  *specs.Spec         // root.path = RootFS(); written to Dir/config.json with the ociVersion the runtime takes
	Root  *os.File            // detached mount of the root filesystem, attached at RootFS()
	Views map[string]*os.File // detached mounts of images, at most MaxViews, and of the directory of volumes, attached at View(name)
	Log   *os.File            // CRI log, opened for appending; nil: output is read and dropped
	Stdin bool                // an open stdin; else /dev/null

	// Target is a running container of the same pod whose pid namespace the
	// process joins; nil: the spec's own.
	Target *Container
}

// Exec runs one more process in a running container. The process starts from
// the container's own spec with these fields put in place.
type Exec struct {
	Container
	Process *specs.Process      // complete: args, env, cwd, user, capabilities, rlimits, terminal
	Stdin   io.ReadCloser       // nil: empty. Exec closes it, which must end a Read under way
	Stdout  io.Writer           // nil: dropped
	Stderr  io.Writer           // nil: dropped; with a terminal, nothing is written to it
	Resize  <-chan TerminalSize // of the terminal; nil or closed: it keeps its size

	// Whole: when the caller's context ends first, everything that the process has
	// started is killed, also what has left its process tree. It is in a cgroup of
	// its own then; a *LooseError says that it was not. Without it, the process is
	// killed with its descendants and its session.
	Whole bool
}

// Attach connects a client with the streams of a container's first process.
type Attach struct {
	Container
	Stdin     io.ReadCloser       // nil: none. Attach closes it, which must end a Read under way
	StdinOnce bool                // the end of Stdin, however it comes, is the end of the container's
	Stdout    io.Writer           // nil: none; with a terminal, all that it shows
	Stderr    io.Writer           // nil: none
	Resize    <-chan TerminalSize // of the terminal; nil or closed: it keeps its size
}

// TerminalSize is in characters.
type TerminalSize struct{ Width, Height uint16 }

// Exit is how a container's first process ended.
type Exit struct {
	Code int       // 0–255; 128+n for a death by signal n
	At   time.Time // when the keeper saw it

	OOMKilled bool   // memory ran out, and the kernel killed it or another process of the container
	Refused   string // why execve refused the program, in the runtime's words; empty: it did not, or nobody knows
}
