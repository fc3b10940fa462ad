package keeper

import (
	"path/filepath"
	"time"
)

// Sockets and files below the run directory.
func Socket(run string) string       { return filepath.Join(run, "keeper.sock") }
func RunnerSocket(run string) string { return filepath.Join(run, "runner.sock") }
func JournalFile(run string) string  { return filepath.Join(run, "journal") }

// ConsoleDir holds the short-lived sockets by which pty masters arrive. Its
// paths must fit sockaddr_un's 108 bytes, so they are not in a container's
// directory.
func ConsoleDir(run string) string { return filepath.Join(run, "s") }

// ExecConsole is the first letter of the sockets in ConsoleDir that are berthd's,
// for the terminals of execs. The keeper leaves them alone.
const ExecConsole = "x"

// Files below a process's directory.
const (
	PidFile    = "pid"    // written by the OCI runtime
	ExitFile   = "exit"   // Exit in JSON, written by the keeper
	StdinFIFO  = "stdin"  // the container opens it read-only
	StdoutFIFO = "stdout" // the container opens it read-write
	StderrFIFO = "stderr"
)

// Names of held files.
const (
	FileStdin  = "stdin"  // write end of StdinFIFO, or nothing
	FileStdout = "stdout" // StdoutFIFO, read-write
	FileStderr = "stderr"
	FileTTY    = "tty"   // pty master
	FilePeer   = "peer"  // its slave, held so that the master never hangs up
	FileLog    = "log"   // CRI log, appended to
	FilePidfd  = "pidfd" // of the process
	// FileConsole is the listening socket to which the runtime sends the pty
	// master. It is held until the runtime has ended.
	FileConsole = "console"
)

// Requests to the keeper. The process ID names what they are about.
const (
	// OpHello: nothing, or the ID after which Hello.IDs begins → Hello.
	OpHello = "hello"
	// OpAdd: Spec and the files it names → Added with the console, if there is
	// one. Adding a known ID changes nothing.
	OpAdd = "add"
	// OpGet: ID → State with the held files.
	OpGet = "get"
	// OpWatch: nothing → Hello; from then on NoticeGone for each process.
	OpWatch = "watch"
	// OpPut: Put with one file, which replaces a held one → nothing.
	OpPut = "put"
	// OpCloseFile: Put without a file: the held one is closed → nothing.
	OpCloseFile = "close"
	// OpDrop: ID → nothing; the process is forgotten and its files are closed.
	// Its zombie, if any, is reaped as an unknown one.
	OpDrop = "drop"
	// OpBegin: ID; a runtime command that may start the process is about to
	// run → nothing. From the runner.
	OpBegin = "begin"
	// OpSettle: ID; that command has ended → State with the held files. From the
	// runner, with its pidfd of the process if it has one.
	OpSettle = "settle"
	// OpDrained: ID; the exited process's output is in the log → nothing.
	// From the runner.
	OpDrained = "drained"
	// OpReady: nothing → nothing. From a runner that holds copies of everything:
	// an orphaned runner may leave, and has left when the reply comes.
	OpReady = "ready"
	// OpUpgrade: Upgrade; the keeper executes that binary in its own place.
	// There is a reply only when it could not: otherwise the connection ends.
	OpUpgrade = "upgrade"
)

// Requests of a keeper to the runner of one that died, beside OpHello and OpGet,
// which that runner answers in the dead keeper's place.
const (
	// OpTakeOver: nothing → nothing, with the listening socket of RunnerSocket.
	OpTakeOver = "take over"
	// OpLeave: nothing → nothing; the runner ends.
	OpLeave = "leave"
)

// Notices of the keeper.
const (
	// NoticeAdopted tells the runner: State; the process runs already, read its
	// output.
	NoticeAdopted = "adopted"
	// NoticeExited tells the runner: State; drain its output.
	NoticeExited = "exited"
	// NoticeClosed tells the runner: Put; the held file is closed.
	NoticeClosed = "closed"
	// NoticeGone tells watchers and the runner: State; it is reaped, its log is
	// complete. The runner is told of a dropped process as well.
	NoticeGone = "gone"
)

// ID is the body of requests about one process.
type ID struct {
	ID string `json:"id"`
}

// Hello says which keeper this is.
type Hello struct {
	Instance string   `json:"instance"` // random; the same after an upgrade in place
	Pid      int      `json:"pid"`
	Runner   int      `json:"runner"` // pid of the runner; 0 while there is none
	IDs      []string `json:"ids"`    // of known processes, in order, at most maxIDs; OpGet tells more
}

// maxIDs bounds Hello.IDs, so that a message holds them.
const maxIDs = 500

// Spec describes a process that the keeper is to wait for.
type Spec struct {
	ID     string   `json:"id"`
	Dir    string   `json:"dir"`              // where the pid file appears and the exit record is written
	Cgroup string   `json:"cgroup,omitempty"` // of the process; with Output, the runner kills what is left in it at exit
	Output bool     `json:"output,omitempty"` // the runner reads its output; it is reaped only after OpDrained
	State  string   `json:"state,omitempty"`  // where the OCI runtime keeps what it knows of it: its start is watched there; empty: it is not watched
	TTY    bool     `json:"tty,omitempty"`    // receive a pty master
	Files  []string `json:"files,omitempty"`  // names of the files that come with the request, in order
	Pid    int      `json:"pid,omitempty"`    // adopted: it runs already, a pidfd is among the files
}

// Added is the reply to OpAdd.
type Added struct {
	Known   bool   `json:"known,omitempty"`   // the process was known before
	Console string `json:"console,omitempty"` // TTY: the socket for the runtime's --console-socket
}

// State is what the keeper knows of a process.
type State struct {
	Spec
	InFlight bool  `json:"inFlight,omitempty"` // a runtime command has begun and is not settled
	Exit     *Exit `json:"exit,omitempty"`     // it has ended
	Gone     bool  `json:"gone,omitempty"`     // and its log is complete
}

// Put is the body of OpPut and OpCloseFile.
type Put struct {
	ID   string `json:"id"`
	Name string `json:"name"`
}

// Upgrade is the body of OpUpgrade.
type Upgrade struct {
	Path string `json:"path"` // absolute path of the new berth-keeper
}

// Exit is how a process ended, and the content of ExitFile.
type Exit struct {
	Code int       `json:"code"` // 0–255; 128+n for a death by signal n; -1 when nobody saw it
	At   time.Time `json:"at"`
	// OOMKilled: memory ran out, and the kernel killed it or another process of
	// its cgroup. A keeper older than this field does not say it.
	OOMKilled bool `json:"oomKilled,omitempty"`
	// Refused: it was still the runtime's when it ended: execve never took the
	// program. Of a container; a keeper older than this field does not say it.
	Refused bool `json:"refused,omitempty"`
}
