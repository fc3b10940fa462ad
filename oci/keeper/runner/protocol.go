package runner

import "time"

// Requests to the runner, by keeper.RunnerSocket.
const (
	// OpRun: Run → Ran. Repeating it for the same ID joins the command under
	// way or returns the same process.
	OpRun = "run"
	// OpReopen: Reopen → nothing. The keeper holds the new log already. When it
	// returns, nothing more is written to the old one.
	OpReopen = "reopen"
	// OpAttach: Attach with one end of a SOCK_SEQPACKET pair → nothing. From
	// the reply on, each chunk of the process's output is a packet there, after
	// it is in the log: one of the Packet letters, then the bytes. The other
	// end is closed by whoever has had enough.
	OpAttach = "attach"
	// OpClear: Clear → nothing. Kills what is left of a process and undoes
	// what OpRun made.
	OpClear = "clear"
	// OpAwait: Await → nothing. Waits until no runtime command of a process is under way.
	OpAwait = "await"
	// OpMakePod: Pod → Made.
	OpMakePod = "make-pod"
	// OpTuneNetwork: Pod, of which it takes NetNS and Sysctls → Made. The interfaces of
	// the pod are there by now.
	OpTuneNetwork = "tune-network"
	// OpClearPod: Pod → nothing. Undoes OpMakePod, also half of it.
	OpClearPod = "clear-pod"
	// OpTryUserNS: TryUserNS → nothing. It fails where pods cannot have user
	// namespaces.
	OpTryUserNS = "try-userns"
)

// LogFile, in a process's directory, is where the OCI runtime is told to write
// its own messages (--log).
const LogFile = "runtime.log"

// Run is one OCI runtime command that starts a process and then ends, leaving
// the process's pid in keeper.PidFile. The keeper knows the process already.
type Run struct {
	ID      string        `json:"id"`
	Dir     string        `json:"dir"`
	Argv    []string      `json:"argv"`            // absolute path of the runtime, then its arguments
	Timeout time.Duration `json:"timeout"`         // after it the command and what it started are killed
	State   string        `json:"state,omitempty"` // where the runtime keeps what it knows of the container; empty: nothing, of an exec
	Root    string        `json:"root,omitempty"`  // where the root filesystem is attached; a detached mount is the first file
	Views   []string      `json:"views,omitempty"` // where images are attached, in a directory of their own; their detached mounts are the files after Root's
	PIDNS   string        `json:"pidns,omitempty"` // where a pid namespace is pinned; it is the file after those
	Stdio   bool          `json:"stdio"`           // stdin, stdout and stderr are the last three files; else the FIFOs in Dir
	Stdin   bool          `json:"stdin"`           // without Stdio: the FIFO is the standard input; else /dev/null
	TTY     bool          `json:"tty"`             // no stdio at all: the runtime makes a terminal
	// OOMScoreAdj of the command. Not every runtime sets that of an exec.
	OOMScoreAdj int `json:"oomScoreAdj,omitempty"`
	// Nest is the directory of a cgroup (v1) below the container's: the process is
	// started there.
	Nest  string `json:"nest,omitempty"`
	Again bool   `json:"again"` // asked before, of a runner that died: its command may be under way still
}

// Ran is the reply to OpRun.
type Ran struct {
	Pid    int    `json:"pid"`              // 0: no process was started
	Status string `json:"status,omitempty"` // how the command ended, if not well
	Stderr string `json:"stderr,omitempty"` // the end of what it wrote there, if it failed
	// Unclear says why nobody can tell whether the program has begun. It is not
	// begun again.
	Unclear string `json:"unclear,omitempty"`
}

// Await is the body of OpAwait.
type Await struct {
	ID  string `json:"id"`
	Dir string `json:"dir"`
}

// Reopen is the body of OpReopen.
type Reopen struct {
	ID string `json:"id"`
}

// Attach is the body of OpAttach.
type Attach struct {
	ID     string `json:"id"`
	Stdout bool   `json:"stdout"` // with a terminal, all that it shows
	Stderr bool   `json:"stderr"`
}

// First letters of packets to an attached client. A socket that ends without
// PacketEnd or PacketSlow is that of a runner that died.
const (
	PacketStdout = 'o'
	PacketStderr = 'e'
	PacketEnd    = '.' // the process has ended; this was all
	PacketSlow   = '!' // the client reads too slowly: what came next is lost to it
)

// MaxPacket bounds a packet to an attached client, in bytes.
const MaxPacket = 1 + chunkSize

// Clear is the body of OpClear.
type Clear struct {
	ID     string `json:"id"`
	Dir    string `json:"dir"`    // empty: no runtime command can be under way
	Cgroup string `json:"cgroup"` // killed whole and removed; empty: none
	Root   string `json:"root"`   // unmounted; empty: none
	Views  string `json:"views"`  // a directory: what is in it is unmounted, and it is removed; empty: none
	PIDNS  string `json:"pidns"`  // unpinned; empty: none
}

// Pod says what OpMakePod makes. An empty path leaves a part out.
type Pod struct {
	ID         string            `json:"id"`
	UserNS     string            `json:"userns"` // it owns the others then, and none is the host's
	UIDs       IDs               `json:"uids"`   // of UserNS
	GIDs       IDs               `json:"gids"`   // of UserNS
	NetNS      string            `json:"netns"`
	IPCNS      string            `json:"ipcns"`
	UTSNS      string            `json:"utsns"`
	PIDNS      string            `json:"pidns"` // held by a tiny init
	Shm        string            `json:"shm"`
	ShmSize    int64             `json:"shmSize"` // bytes
	Files      string            `json:"files"`   // a filesystem for files that containers may write to
	FilesSize  int64             `json:"filesSize"`
	Hostname   string            `json:"hostname"`
	Sysctls    map[string]string `json:"sysctls"`
	Init       string            `json:"init"`       // an empty directory, the init's root to be
	InitCgroup string            `json:"initCgroup"` // of the init
	Cgroup     string            `json:"cgroup"`     // of the pod, if Berth owns it: killed and removed by OpClearPod
}

// Made is the reply to OpMakePod and OpTuneNetwork.
type Made struct {
	Refused *Refusal `json:"refused,omitempty"` // a sysctl that the kernel did not take; OpMakePod has pinned no namespace then
}

// Refusal is what the kernel said to a sysctl.
type Refusal struct {
	Sysctl string `json:"sysctl"` // name, as it came
	Reason string `json:"reason"`
}

func (r *Refusal) Error() string { return "set sysctl " + r.Sysctl + ": " + r.Reason }

// IDs are the ids 0 to Size-1 of a user namespace: outside, they are Host and
// those that follow it.
type IDs struct {
	Host uint32 `json:"host"`
	Size uint32 `json:"size"`
}

// TryUserNS is the body of OpTryUserNS.
type TryUserNS struct {
	Pass []string `json:"pass"` // directories that a pod's root must be able to go through
	Map  []string `json:"map"`  // directories whose mounts must take an id mapping
}
