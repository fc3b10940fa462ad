package oci

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"berth/oci/cgroup"
	"berth/oci/keeper"
	"berth/oci/keeper/runner"
	"berth/oci/keeper/wire"
	"berth/test/leak"

	"github.com/opencontainers/cgroups"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// The test binary is berth-keeper as well: Client starts it. In a container it is
// an attacker.
func TestMain(m *testing.M) {
	keeper.Step = dieHere
	logger := log.New(os.Stderr, "", log.Lmicroseconds|log.Lmsgprefix)
	if os.Args[0] == hostileName {
		logger.Fatal(beHostile())
	}
	if err := runner.Program(os.Args, logger); !errors.Is(err, runner.ErrUsage) {
		if err != nil {
			logger.Fatal(err)
		}
		syscall.Exit(0) // with the race detector, os.Exit takes a second
	}
	switch os.Args[0] {
	case attackName:
		attackInit()
		os.Exit(0)
	case inheritedName:
		printInherited()
		os.Exit(0)
	}
	// The cgroup library opens /sys/fs/cgroup at its first use, for good.
	_, _ = cgroups.ReadFile("/sys/fs/cgroup", "cgroup.procs")
	leak.MainUnderReaper(m)
}

// node is a run directory with its keeper, and a root filesystem of busybox.
type node struct {
	t      *testing.T
	ctx    context.Context
	run    string
	root   string
	keeper *keeper.Client
	names  int
}

// newNode starts a keeper, which is killed at the test's end, when nothing of
// its may be left.
func newNode(t *testing.T) *node {
	t.Helper()
	return newNodeWith(t, self(t))
}

// self is the test binary.
func self(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// newNodeWith is newNode with another berth-keeper.
func newNodeWith(t *testing.T, binary string) *node {
	t.Helper()
	leak.NeedRoot(t)
	run, err := os.MkdirTemp("/dev/shm", "berth-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(run) })
	if err := os.Chmod(run, 0o711); err != nil { // as MakeRunDir makes it
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	t.Cleanup(cancel)
	n := &node{t: t, ctx: ctx, run: run, root: busyboxRoot(t)}
	n.keeper = n.openClient(binary)
	t.Cleanup(func() {
		n.stopKeeper()
		b, _ := os.ReadFile(filepath.Join(run, "keeper.log"))
		if bytes.Contains(b, []byte("DATA RACE")) {
			t.Error("data race in the keeper or the runner")
		}
		if t.Failed() {
			t.Logf("keeper.log:\n%s", b)
		}
	})
	return n
}

func (n *node) openClient(binary string) *keeper.Client {
	n.t.Helper()
	c := &keeper.Client{Run: n.run, Binary: binary, Logf: n.t.Logf}
	if err := c.Open(n.ctx); err != nil {
		n.t.Fatal(err)
	}
	return c
}

func (n *node) stopKeeper() {
	h, err := n.keeper.Hello(n.ctx)
	n.keeper.Close()
	if err != nil {
		n.t.Errorf("ask the keeper for its pid: %v", err)
		return
	}
	kill(n.t, h.Pid)
	awaitEnd(n.t, h.Runner)
	if err := cgroup.Remove(CgroupRoot); err != nil {
		n.t.Error(err)
	}
}

func (n *node) hello() keeper.Hello {
	n.t.Helper()
	h, err := n.keeper.Hello(n.ctx)
	if err != nil {
		n.t.Fatal(err)
	}
	return h
}

// held returns a file that the keeper holds; it is closed at the test's end.
func (n *node) held(id, name string) *os.File {
	n.t.Helper()
	conn, err := wire.Dial(keeper.Socket(n.run))
	if err != nil {
		n.t.Fatal(err)
	}
	peer := wire.NewPeer(conn)
	defer func() {
		peer.Close()
		<-peer.Done()
	}()
	go peer.Serve(func(*wire.Request) {})
	var s keeper.State
	files, err := peer.Call(n.ctx, keeper.OpGet, keeper.ID{ID: id}, &s)
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { wire.CloseAll(files) })
	i := slices.Index(s.Files, name)
	if i < 0 {
		n.t.Fatalf("the keeper holds %v of %s, not %s", s.Files, id, name)
	}
	return files[i]
}

// pause stops a process until goOn is called, or the test ends.
func pause(t *testing.T, pid int) (goOn func()) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	goOn = sync.OnceFunc(func() { _ = syscall.Kill(pid, syscall.SIGCONT) })
	t.Cleanup(goOn)
	return goOn
}

// kill sends SIGKILL and waits for the end.
func kill(t *testing.T, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatalf("kill %d: %v", pid, err)
	}
	awaitEnd(t, pid)
}

func awaitEnd(t *testing.T, pid int) {
	t.Helper()
	p, err := cgroup.OpenProcess(pid)
	if err != nil {
		return
	}
	defer p.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := cgroup.Wait(ctx, []*cgroup.Process{p}); err != nil {
		t.Errorf("process %d: %v", pid, err)
	}
}

// busyboxRoot is a directory with busybox and its applets. They are hard links:
// ext4 takes its time over 400 inodes where others were just deleted.
func busyboxRoot(t *testing.T) string {
	t.Helper()
	busybox := leak.NeedTool(t, "busybox")
	root := t.TempDir()
	if err := os.Chmod(filepath.Dir(root), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"bin", "proc", "sys", "dev", "tmp", "etc"} {
		if err := os.Mkdir(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(root, 0o755); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "bin", "busybox"), b, 0o755); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(busybox, "--list").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, applet := range strings.Fields(string(out)) {
		if applet == "busybox" {
			continue
		}
		if err := os.Link(filepath.Join(root, "bin", "busybox"), filepath.Join(root, "bin", applet)); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// eachRuntime runs f with runc and with crun, on a node of its own each.
func eachRuntime(t *testing.T, f func(t *testing.T, n *node, r *Runtime)) {
	for _, name := range []string{"runc", "crun"} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			f(t, n, n.runtime(name))
		})
	}
}

func (n *node) runtime(name string) *Runtime {
	n.t.Helper()
	r := &Runtime{Name: name, Path: leak.NeedTool(n.t, name), Run: n.run, Keeper: n.keeper, Timeout: time.Minute}
	if err := r.Probe(n.ctx); err != nil {
		n.t.Fatal(err)
	}
	return r
}

// container is one of a test's, with its log.
type container struct {
	*node
	*Runtime
	Container
	spec    *specs.Spec
	stdin   bool
	log     string
	target  *Container
	views   map[string]string // by name: the directory that it shows
	mapRoot string            // pinned user namespace whose ids the root has; empty: the host's
}

// container makes one that runs a shell script; it is removed at the test's
// end.
func (n *node) container(r *Runtime, script string) *container {
	n.t.Helper()
	n.names++
	id := fmt.Sprintf("c%d-%s-%d", n.names, r.Name, time.Now().UnixNano())
	c := &container{node: n, Runtime: r, Container: Container{
		ID: id, Dir: filepath.Join(n.run, "pods", "p", "c", id), Cgroup: CgroupRoot + "/" + id,
	}}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		n.t.Fatal(err)
	}
	c.log = filepath.Join(n.run, id+".log")
	c.spec = testSpec(c.Container, "sh", "-c", script)
	n.t.Cleanup(c.remove)
	return c
}

func (c *container) remove() {
	if err := c.Runtime.Remove(c.ctx, c.Container); err != nil {
		c.t.Errorf("remove: %v", err)
	}
	if left, _ := os.ReadDir(c.Dir); len(left) > 0 {
		c.t.Errorf("left in %s: %v", c.Dir, left)
	}
}

func testSpec(c Container, args ...string) *specs.Spec {
	return &specs.Spec{
		Version: specs.Version,
		Root:    &specs.Root{Path: c.RootFS(), Readonly: true},
		Process: &specs.Process{
			Args: args, Cwd: "/", Env: []string{"PATH=/bin"}, NoNewPrivileges: true,
			Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1000, Hard: 1001}},
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"}},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"ro"}},
			{Destination: "/tmp", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid"}},
		},
		Linux: &specs.Linux{
			CgroupsPath: c.Cgroup,
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.IPCNamespace},
				{Type: specs.UTSNamespace}, {Type: specs.NetworkNamespace},
			},
		},
	}
}

// start starts the container and returns its pid.
func (c *container) start() int {
	c.t.Helper()
	pid, err := c.tryStart()
	if err != nil {
		c.t.Fatal(err)
	}
	return pid
}

func (c *container) tryStart() (int, error) { return c.startFrom(c.root) }

// startFrom starts the container with a detached copy of the mounts at root.
func (c *container) startFrom(root string) (int, error) {
	log := c.openLog()
	defer log.Close()
	fd, err := unix.OpenTree(unix.AT_FDCWD, root, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return 0, err
	}
	detached := os.NewFile(uintptr(fd), root)
	defer detached.Close()
	if c.mapRoot != "" {
		if err := mapIDs(fd, c.mapRoot); err != nil {
			return 0, err
		}
	}
	s := Start{Container: c.Container, Spec: c.spec, Root: detached, Log: log, Stdin: c.stdin, Target: c.target, Views: map[string]*os.File{}}
	for name, dir := range c.views {
		fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err != nil {
			return 0, err
		}
		s.Views[name] = os.NewFile(uintptr(fd), dir)
		defer s.Views[name].Close()
	}
	return c.Runtime.Start(c.ctx, s)
}

func (c *container) openLog() *os.File {
	c.t.Helper()
	log, err := OpenLog(filepath.Dir(c.log), filepath.Base(c.log))
	if err != nil {
		c.t.Fatal(err)
	}
	return log
}

func (c *container) reopenLog() {
	c.t.Helper()
	log := c.openLog()
	defer log.Close()
	if err := c.Runtime.ReopenLog(c.ctx, c.Container, log); err != nil {
		c.t.Fatal(err)
	}
}

// wait returns the exit code.
func (c *container) wait() int {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.ctx, patience)
	defer cancel()
	e, err := c.Runtime.Wait(ctx, c.Container)
	if err != nil {
		c.t.Fatal(err)
	}
	return e.Code
}

// write gives text to the container's standard input, as an attached client
// does.
func (c *container) write(text string) {
	c.t.Helper()
	f, err := os.OpenFile(filepath.Join(c.Dir, keeper.StdinFIFO), os.O_WRONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		c.t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(text); err != nil {
		c.t.Fatal(err)
	}
}

// dropNamespace leaves the container in the host's namespace of that type.
func (c *container) dropNamespace(kind specs.LinuxNamespaceType) {
	c.spec.Linux.Namespaces = slices.DeleteFunc(c.spec.Linux.Namespaces, func(ns specs.LinuxNamespace) bool {
		return ns.Type == kind
	})
}

// procs lists the processes in the container's cgroup.
func (c *container) procs() []int {
	c.t.Helper()
	pids, err := cgroup.Procs(c.Cgroup)
	if err != nil {
		c.t.Fatal(err)
	}
	return pids
}

// exec runs a shell script in the container.
func (c *container) exec(script string) (code int, stdout, stderr string, err error) {
	var out, errs strings.Builder
	p := *c.spec.Process
	p.Args, p.Terminal = []string{"sh", "-c", script}, false
	code, err = c.Runtime.Exec(c.ctx, Exec{Container: c.Container, Process: &p, Stdout: &out, Stderr: &errs})
	return code, out.String(), errs.String(), err
}

// output is the log's content without what CRI adds, by stream.
func (c *container) output() (stdout, stderr string) {
	c.t.Helper()
	return parseLog(c.t, c.log)
}

// awaitLog waits until something is in the log.
func (c *container) awaitLog() {
	c.t.Helper()
	await(c.t, "the log is written", func() bool {
		st, err := os.Stat(c.log)
		return err == nil && st.Size() > 0
	})
}

// awaitOutput waits until text is in the log.
func (c *container) awaitOutput(text string) {
	c.t.Helper()
	await(c.t, "the log has "+text, func() bool {
		b, err := os.ReadFile(c.log)
		if err != nil {
			c.t.Fatal(err)
		}
		// What is being written now may be there in part.
		stdout, stderr := parseLines(c.t, string(b[:bytes.LastIndexByte(b, '\n')+1]))
		return strings.Contains(stdout+stderr, text)
	})
}

func parseLog(t *testing.T, path string) (stdout, stderr string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return parseLines(t, string(b))
}

func parseLines(t *testing.T, text string) (stdout, stderr string) {
	t.Helper()
	var out, errs strings.Builder
	for line := range strings.Lines(text) {
		f := strings.SplitN(line, " ", 4)
		if len(f) != 4 || !strings.HasSuffix(line, "\n") {
			t.Fatalf("torn line in the log: %q", line)
		}
		if _, err := time.Parse(time.RFC3339Nano, f[0]); err != nil {
			t.Fatalf("log line %q: %v", line, err)
		}
		w := &out
		if f[1] == "stderr" {
			w = &errs
		} else if f[1] != "stdout" {
			t.Fatalf("log line %q names no stream", line)
		}
		switch f[2] {
		case "F":
			w.WriteString(f[3])
		case "P":
			w.WriteString(strings.TrimSuffix(f[3], "\n"))
		default:
			t.Fatalf("log line %q has no tag", line)
		}
	}
	return out.String(), errs.String()
}
