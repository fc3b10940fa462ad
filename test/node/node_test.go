//go:build node

package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/oci"
	"berth/oci/cgroup"
	"berth/test/expect"
	"berth/test/leak"
)

// cgroupRoot is where the kubelet has the cgroups of its pods.
const cgroupRoot = "/berth-node"

// node is a machine with a kubelet, berthd and a registry.
type node struct {
	runtimeapi.RuntimeServiceClient
	conn  *grpc.ClientConn
	image string // of busybox; the kubelet pulls it

	run  string // berthd's run directory, on tmpfs
	dir  string // everything else: images, manifests, logs, the kubelet's root
	host string // a directory that pods share with the test

	statsFromCRI bool // the kubelet's gate PodAndContainerStatsFromCRI

	registry, berthd, kubelet program
}

// forEachSetup runs test on a fresh node with each OCI runtime, and so with each
// way in which a kubelet gets its statistics.
func forEachSetup(t *testing.T, test func(t *testing.T, n *node)) {
	t.Run("runc and statistics from CRI", func(t *testing.T) { test(t, start(t, "runc", true)) })
	t.Run("crun and statistics from cgroups", func(t *testing.T) { test(t, start(t, "crun", false)) })
}

// start starts a node that ends with the test.
func start(t *testing.T, handler string, statsFromCRI bool) *node {
	t.Helper()
	alone(t)
	leak.NeedTool(t, handler)
	run, err := os.MkdirTemp("/dev/shm", "berth-") // the paths of sockets are short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(run); err != nil {
			t.Error(err)
		}
	})
	n := &node{run: run, dir: t.TempDir(), host: t.TempDir(), statsFromCRI: statsFromCRI}
	n.startRegistry(t)
	n.startBerthd(t, handler)
	makeCgroup(t)
	n.startKubelet(t)
	t.Cleanup(func() { n.end(t) })
	return n
}

func (n *node) startRegistry(t *testing.T) {
	t.Helper()
	const address = "127.0.0.1:5000"
	config := filepath.Join(n.dir, "registry.yml")
	write(t, config, "version: 0.1\n"+
		"log: {level: error, accesslog: {disabled: true}}\n"+
		"storage: {filesystem: {rootdirectory: "+filepath.Join(n.dir, "registry")+"}}\n"+
		"http: {addr: "+address+"}\n")
	n.registry = program{path: leak.NeedTool(t, "registry"), args: []string{"serve", config}, log: filepath.Join(n.dir, "registry.log")}
	n.registry.start(t)
	t.Cleanup(func() { n.registry.end(t, syscall.SIGKILL) })
	within(t, patience, "the registry listens", func() bool {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	n.image = address + "/busybox:1"
	mkimage := exec.Command(leak.NeedTool(t, "mkimage"), "-busybox", leak.NeedTool(t, "busybox"), n.image)
	if out, err := mkimage.CombinedOutput(); err != nil {
		t.Fatalf("push the image: %v: %s", err, out)
	}
}

// bridge is a network as a cluster's own would be.
const bridge = `{
	"cniVersion": "1.1.0", "name": "pods", "plugins": [
		{"type": "bridge", "bridge": "berth-test0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
		 "ipam": {"type": "host-local", "dataDir": %q, "ranges": [[{"subnet": "198.51.100.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
		{"type": "portmap", "capabilities": {"portMappings": true}, "backend": "nftables"}
	]
}`

func (n *node) startBerthd(t *testing.T, handler string) {
	t.Helper()
	config := filepath.Join(n.dir, "berthd.toml")
	network := filepath.Join(n.dir, "net.d")
	write(t, filepath.Join(network, "10-pods.conflist"), fmt.Sprintf(bridge, filepath.Join(n.dir, "ipam")))
	write(t, config, fmt.Sprintf("socket = %q\nrun_dir = %q\ndata_dir = %q\n[runtime]\ndefault = %q\n[network]\nconf_dir = %q\n",
		n.socket(), n.run, filepath.Join(n.dir, "data"), handler, network))
	t.Cleanup(func() {
		if _, err := net.InterfaceByName("berth-test0"); err == nil { // made by the first pod
			ip(t, "link del berth-test0")
		}
	})
	var err error
	n.conn, err = grpc.NewClient("unix:"+n.socket(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true), grpc.MaxCallRecvMsgSize(16<<20)))
	if err != nil {
		t.Fatal(err)
	}
	n.RuntimeServiceClient = runtimeapi.NewRuntimeServiceClient(n.conn)
	berthd, err := filepath.Abs("../../bin/berthd")
	if err != nil {
		t.Fatal(err)
	}
	n.berthd = program{path: berthd, args: []string{"--config", config, "-v", "1"}, log: filepath.Join(n.dir, "berthd.log")}
	n.berthd.start(t)
	n.awaitBerthd(t)
}

func (n *node) socket() string { return filepath.Join(n.run, "b.sock") }

func (n *node) awaitBerthd(t *testing.T) {
	t.Helper()
	n.conn.ResetConnectBackoff()
	within(t, patience, "berthd answers", func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		_, err := n.Version(ctx, &runtimeapi.VersionRequest{})
		return err == nil
	})
}

// makeCgroup makes the kubelet's cgroup root, which it wants to find. A process
// has to pass through.
func makeCgroup(t *testing.T) {
	t.Helper()
	cat := exec.Command("cat")
	stdin, err := cat.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cat.Start(); err != nil {
		t.Fatal(err)
	}
	err = cgroup.Make(cgroupRoot, cat.Process.Pid)
	stdin.Close()
	if err := errors.Join(err, cat.Wait()); err != nil {
		t.Fatal(err)
	}
}

// end takes the node apart: a kubelet that is stopped leaves its pods alone.
func (n *node) end(t *testing.T) {
	n.kubelet.end(t, syscall.SIGTERM)
	if n.berthd.cmd == nil { // the test failed between a kill and a start
		n.berthd.start(t)
		n.awaitBerthd(t)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := expect.NoPods(ctx, n); err != nil {
		t.Errorf("remove the pods that the test left: %v", err)
	}
	n.conn.Close()
	n.berthd.end(t, syscall.SIGTERM)
	if keeper := n.keeper(t); keeper != 0 {
		if err := syscall.Kill(keeper, syscall.SIGKILL); err != nil {
			t.Error(err)
		}
	}
	for _, point := range slices.Backward(n.mounts(t)) {
		if err := syscall.Unmount(point, 0); err != nil {
			t.Errorf("unmount %s: %v", point, err)
		}
	}
	if err := errors.Join(cgroup.Remove(oci.CgroupRoot), cgroup.Remove(cgroupRoot)); err != nil {
		t.Error(err)
	}
	if t.Failed() {
		t.Logf("the end of the kubelet's log:\n%s\nof berthd's:\n%s", n.kubelet.tail(), n.berthd.tail())
	}
}

// mounts are the mount points below the node's directories, in the order in which
// they were made.
func (n *node) mounts(t *testing.T) []string {
	t.Helper()
	return slices.DeleteFunc(expect.Mounts(t), func(point string) bool {
		return !strings.HasPrefix(point, n.dir+"/") && !strings.HasPrefix(point, n.run+"/")
	})
}

// keeper is the pid of the node's keeper, 0 without one.
func (n *node) keeper(t *testing.T) int { return expect.Keeper(t, n.run) }

// children are the processes whose parent is pid, by what they execute.
func children(t *testing.T, pid int) map[int]string {
	t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		t.Fatal(err)
	}
	all := map[int]string{}
	for _, task := range tasks {
		text, _ := os.ReadFile(task) // a thread that has ended had none
		for _, field := range strings.Fields(string(text)) {
			var child int
			if _, err := fmt.Sscan(field, &child); err != nil {
				t.Fatal(err)
			}
			exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", child))
			all[child] = filepath.Base(exe)
		}
	}
	return all
}

// write makes a file, with its directory.
func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
