package conformance

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/oci"
	"berth/oci/cgroup"
	"berth/test/expect"
	"berth/test/leak"
	"berth/test/registry"
)

func TestMain(m *testing.M) {
	oci.FindControls() // opens /sys/fs/cgroup at its first use, for good
	leak.MainUnderReaper(m)
}

// patience bounds every wait: longer means broken.
const patience = 30 * time.Second

// node is a berthd with a directory, a socket and a registry of its own.
type node struct {
	runtimeapi.RuntimeServiceClient
	images   runtimeapi.ImageServiceClient
	conn     *grpc.ClientConn
	registry *registry.Registry
	busybox  string // reference of an image with all of busybox; not pulled yet
	handler  string // the default runtime handler

	bin, run, data, netConf string
	berthd                  *exec.Cmd // nil after killDaemon
}

// forEachRuntime runs test on a fresh node for runc and for crun.
func forEachRuntime(t *testing.T, test func(t *testing.T, n *node)) {
	t.Helper()
	leak.NeedRoot(t)
	for _, handler := range []string{"runc", "crun"} {
		t.Run(handler, func(t *testing.T) {
			leak.NeedTool(t, handler)
			test(t, start(t, handler))
		})
	}
}

// start starts a node that ends with the test.
func start(t *testing.T, handler string) *node {
	t.Helper()
	run, err := os.MkdirTemp("/dev/shm", "berth-") // the paths of sockets are short
	if err != nil {
		t.Fatal(err)
	}
	n := &node{
		registry: registry.Start(t), handler: handler,
		bin: programs(t), run: run, data: t.TempDir(), netConf: t.TempDir(),
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(run); err != nil {
			t.Error(err)
		}
	})
	n.busybox = n.registry.Host() + "/busybox:1"
	n.registry.Push(t, "busybox", busyboxLayer(t), ocispec.ImageConfig{Env: []string{"PATH=/bin"}, Cmd: []string{"sh"}}, "1")
	n.conn, err = grpc.NewClient("unix:"+n.socket(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: patience}),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true), grpc.MaxCallRecvMsgSize(16<<20)))
	if err != nil {
		t.Fatal(err)
	}
	n.RuntimeServiceClient = runtimeapi.NewRuntimeServiceClient(n.conn)
	n.images = runtimeapi.NewImageServiceClient(n.conn)
	n.configure(t, true)
	n.startDaemon(t)
	t.Cleanup(func() { n.end(t) })
	return n
}

func (n *node) socket() string { return filepath.Join(n.run, "b.sock") }

// configure writes the node's configuration.
func (n *node) configure(t *testing.T, builtin bool) {
	t.Helper()
	text := fmt.Sprintf("socket = %q\nrun_dir = %q\ndata_dir = %q\n[runtime]\ndefault = %q\n[network]\nconf_dir = %q\nbuiltin = %v\n"+
		"bin_dirs = [%q, \"/usr/local/libexec/berth/cni\", \"/opt/cni/bin\", \"/usr/lib/cni\"]\n",
		n.socket(), n.run, n.data, n.handler, n.netConf, builtin, n.netConf)
	if err := os.WriteFile(filepath.Join(n.data, "berthd.toml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// startDaemon returns when berthd answers.
func (n *node) startDaemon(t *testing.T) {
	t.Helper()
	log, err := os.OpenFile(filepath.Join(n.data, "berthd.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	n.berthd = exec.Command(filepath.Join(n.bin, "berthd"), "--config", filepath.Join(n.data, "berthd.toml"), "-v", "1")
	n.berthd.Stdout, n.berthd.Stderr = log, log
	if err := n.berthd.Start(); err != nil {
		t.Fatal(err)
	}
	n.conn.ResetConnectBackoff()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience)
	defer cancel()
	for {
		_, err := n.Version(ctx, &runtimeapi.VersionRequest{})
		if err == nil {
			return
		}
		// The first call may still go to the berthd that was killed.
		if status.Code(err) != codes.Unavailable || ctx.Err() != nil {
			n.showLogs(t)
			t.Fatalf("berthd does not answer: %v", err)
		}
	}
}

// killDaemon ends berthd as a crash does.
func (n *node) killDaemon(t *testing.T) {
	t.Helper()
	if err := n.berthd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	n.berthd.Wait() // its error is the signal
	n.berthd = nil
}

// stopDaemon ends berthd as an upgrade does.
func (n *node) stopDaemon(t *testing.T) {
	t.Helper()
	if err := n.berthd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := n.berthd.Wait(); err != nil {
		t.Errorf("berthd ended with %v", err)
	}
	n.berthd = nil
}

// end removes all pods, stops berthd and ends the keeper, which has nothing
// left to keep.
func (n *node) end(t *testing.T) {
	if n.berthd == nil { // the test failed between a kill and a start
		n.startDaemon(t)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := expect.NoPods(ctx, n); err != nil {
		t.Errorf("remove the pods that the test left: %v", err)
	}
	n.stopDaemon(t)
	n.conn.Close()
	if keeper := n.keeper(t); keeper != 0 {
		if left := n.processes(keeper); len(left) > 1 {
			t.Errorf("the keeper still has children: %v", left)
		}
		if err := syscall.Kill(keeper, syscall.SIGKILL); err != nil {
			t.Error(err)
		}
	}
	if err := cgroup.Remove(oci.CgroupRoot); err != nil {
		t.Error(err)
	}
	if netns, _ := filepath.Glob(oci.NetNSDir + "/berth-*"); len(netns) > 0 {
		t.Errorf("network namespaces are left: %v", netns)
	}
	if t.Failed() {
		n.showLogs(t)
	}
}

func (n *node) showLogs(t *testing.T) {
	for _, name := range []string{filepath.Join(n.data, "berthd.log"), filepath.Join(n.run, "keeper.log")} {
		text, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		t.Logf("the end of %s:\n%s", filepath.Base(name), text[max(0, len(text)-8<<10):])
	}
}

// keeper is the pid of the node's keeper, 0 without one.
func (n *node) keeper(t *testing.T) int { return expect.Keeper(t, n.run) }

// runner is the keeper's child that does its work.
func (n *node) runner(t *testing.T) int {
	t.Helper()
	for _, pid := range n.processes(n.keeper(t)) {
		if n.isRunner(pid) {
			return pid
		}
	}
	t.Fatal("the keeper has no runner")
	return 0
}

func (n *node) isRunner(pid int) bool {
	exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	return exe == filepath.Join(n.bin, "berth-keeper")
}

// processes are the children of pid.
func (n *node) processes(pid int) []int {
	var all []int
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, task := range tasks {
		text, _ := os.ReadFile(task)
		for _, field := range strings.Fields(string(text)) {
			if child, err := strconv.Atoi(field); err == nil {
				all = append(all, child)
			}
		}
	}
	return all
}

// programs builds what a node runs, once. With BERTH_PROGRAMS in the environment
// they are that directory's: on a machine without Go.
func programs(t *testing.T) string {
	t.Helper()
	dir, err := buildPrograms()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

var buildPrograms = sync.OnceValues(func() (string, error) {
	if dir := os.Getenv("BERTH_PROGRAMS"); dir != "" {
		return dir, nil
	}
	// A path that stays the same: the build is cached, and nothing needs to be
	// removed.
	dir, err := filepath.Abs("../../build/conformance")
	if err != nil {
		return "", err
	}
	// As make builds them, which has compiled all of it then.
	build := exec.Command("go", "build", "-buildvcs=false", "-trimpath", "-tags=grpcnotrace", "-ldflags=-s -w", "-o", dir+"/", "berth/cmd/...")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build berthd: %w: %s", err, out)
	}
	return dir, nil
})

// busyboxLayer is what every node's registry has. Nobody writes to it.
func busyboxLayer(t *testing.T) []byte {
	t.Helper()
	busybox.once.Do(func() { busybox.layer = registry.Layer(t, busyboxFiles(t)...) })
	return busybox.layer
}

var busybox struct {
	once  sync.Once
	layer []byte
}

// busyboxFiles are busyboxPrograms, two accounts and the directories that a
// container mounts on.
func busyboxFiles(t *testing.T) []registry.Entry {
	t.Helper()
	entries := busyboxPrograms(t)
	for _, dir := range []string{"dev", "etc", "proc", "sys"} {
		entries = append(entries, registry.Dir(dir, 0o755))
	}
	return append(entries, registry.Dir("tmp", 0o1777),
		registry.File("etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1000:web:/:/bin/sh\n"),
		registry.File("etc/group", 0o644, "root:x:0:\nweb:x:1000:\nextra:x:2000:web\n"))
}

// busyboxPrograms are every applet of the machine's static busybox. They are hard
// links, as in busybox's own image: where images were just deleted, ext4 takes
// its time over each of 400 inodes.
func busyboxPrograms(t *testing.T) []registry.Entry {
	t.Helper()
	path := leak.NeedTool(t, "busybox")
	program, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	applets, err := exec.Command(path, "--list").Output()
	if err != nil {
		t.Fatal(err)
	}
	entries := []registry.Entry{registry.File("bin/busybox", 0o755, string(program))}
	for _, name := range strings.Fields(string(applets)) {
		if name != "busybox" {
			entries = append(entries, registry.HardLink("bin/"+name, "bin/busybox"))
		}
	}
	return entries
}
