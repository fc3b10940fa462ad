package cni

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"berth/test/leak"
)

// isolated is set in the environment once this process's ancestors have put it
// into namespaces of its own: for the tests, they are the host.
const isolated = "BERTH_CNI_TEST_ISOLATED"

func TestMain(m *testing.M) {
	switch {
	case filepath.Base(os.Args[0]) == "play":
		play()
	case os.Getenv("CNI_COMMAND") != "":
		wrap()
	case os.Getenv(victimEnv) != "":
		victim()
	}
	if os.Geteuid() == 0 && os.Getenv(isolated) == "" {
		if err := isolate(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	leak.MainUnderReaper(m)
}

// isolate gives the processes that this thread starts a network and a mount
// namespace: the bridges, rules and pins of the tests are nobody else's.
func isolate() error {
	runtime.LockOSThread()
	os.Setenv(isolated, "1")
	if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

// newNetwork returns a Network with empty directories and the reference plugins,
// and checks when the test has ended that nothing of it is left.
func newNetwork(t *testing.T) *Network {
	t.Helper()
	leak.NeedRoot(t)
	dir := t.TempDir()
	n := &Network{
		ConfDir:  filepath.Join(dir, "net.d"),
		BinDirs:  []string{playDir(t), referencePlugins(t)},
		CacheDir: filepath.Join(dir, "cache"),
		Timeout:  time.Minute,
	}
	before := hostState(t)
	t.Cleanup(func() {
		if t.Failed() {
			return // what is left is the consequence
		}
		checkEmpty(t, n)
		wantHostState(t, before)
	})
	return n
}

func referencePlugins(t *testing.T) string {
	t.Helper()
	leak.NeedTool(t, "nft")
	for _, name := range []string{"portmap", "host-local", "bridge"} {
		leak.NeedTool(t, name)
	}
	return filepath.Dir(leak.NeedTool(t, "bridge"))
}

// playDir is a plugin directory with the plugin "play", which is this binary.
func playDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	linkSelf(t, filepath.Join(dir, "play"))
	return dir
}

func linkSelf(t *testing.T, path string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(self, path); err != nil {
		t.Fatal(err)
	}
}

// wantHostState waits a little: the kernel takes down the interfaces of a network
// namespace some time after its end.
func wantHostState(t *testing.T, want []string) {
	t.Helper()
	again := time.NewTicker(10 * time.Millisecond)
	defer again.Stop()
	deadline := time.After(5 * time.Second)
	for {
		got := hostState(t)
		if slices.Equal(want, got) {
			return
		}
		select {
		case <-again.C:
		case <-deadline:
			t.Errorf("the host was\n%s\nand is\n%s", strings.Join(want, "\n"), strings.Join(got, "\n"))
			return
		}
	}
}

// hostState is what networks may change on the host.
func hostState(t *testing.T) []string {
	t.Helper()
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	var state []string
	for _, link := range links {
		state = append(state, "link "+link.Attrs().Name)
	}
	tables, err := exec.Command(leak.NeedTool(t, "nft"), "list", "tables").CombinedOutput()
	if err != nil {
		t.Fatalf("nft: %v: %s", err, tables)
	}
	for table := range strings.Lines(string(tables)) {
		state = append(state, strings.TrimSpace(table))
	}
	return state
}

// checkEmpty looks whether n remembers an attachment or an address, and whether
// a plugin runs.
func checkEmpty(t *testing.T, n *Network) {
	t.Helper()
	for _, dir := range []string{"attachments", "results"} {
		entries, _ := os.ReadDir(filepath.Join(n.CacheDir, dir))
		for _, e := range entries {
			t.Errorf("left: %s/%s", dir, e.Name())
		}
	}
	if _, err := os.Stat(n.ipamDir()); err == nil {
		t.Errorf("left: %s", n.ipamDir())
	}
	for _, p := range runningPlugins(t) {
		t.Errorf("left: a plugin's process, %s", p)
	}
}

// runningPlugins are the environments of plugins in this network namespace,
// which is the tests' own.
func runningPlugins(t *testing.T) []string {
	t.Helper()
	here, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, p := range processes {
		environ, _ := os.ReadFile(p + "/environ")
		ns, _ := os.Readlink(p + "/ns/net")
		if ns == here && strings.Contains(string(environ), "CNI_COMMAND=") {
			found = append(found, strings.ReplaceAll(string(environ), "\x00", " "))
		}
	}
	return found
}

// newPod makes a pod with a pinned network namespace of its own.
func newPod(t *testing.T, id string, ports ...PortMapping) Pod {
	t.Helper()
	pin := pinNetNS(t)
	err := inNetNS(pin, func() error { // as a pod's namespaces are made
		return os.WriteFile("/proc/sys/net/ipv6/conf/default/accept_ra", []byte("0"), 0)
	})
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return Pod{
		ID:        id,
		NetNS:     pin,
		Name:      "pod-" + id,
		Namespace: "default",
		UID:       "uid-" + id,
		Ports:     ports,
		Builtin:   true,
	}
}

func pinNetNS(t *testing.T) string {
	t.Helper()
	ns, err := newNetNS()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	return pinned(t, procPath(ns))
}

// pinned keeps the namespace at path alive at another one until the test's end.
func pinned(t *testing.T, path string) string {
	t.Helper()
	pin := filepath.Join(t.TempDir(), "net")
	if err := os.WriteFile(pin, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(path, pin, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unpin(t, pin) })
	return pin
}

// unpin does nothing for a pin that a test has removed already.
func unpin(t *testing.T, pin string) {
	t.Helper()
	if err := unix.Unmount(pin, unix.MNT_DETACH); err != nil && isNetNS(pin) {
		t.Errorf("unmount %s: %v", pin, err)
	}
}

// writeConf puts a network configuration into ConfDir.
func writeConf(t *testing.T, n *Network, name, content string) {
	t.Helper()
	if err := os.MkdirAll(n.ConfDir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(n.ConfDir, name), []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func add(t *testing.T, n *Network, pod Pod) Attachment {
	t.Helper()
	attachment, err := n.Add(t.Context(), pod)
	if err != nil {
		t.Fatal(err)
	}
	return attachment
}

func del(t *testing.T, n *Network, pod Pod) {
	t.Helper()
	if err := n.Del(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
}

func removeLink(t *testing.T, name string) {
	t.Helper()
	link, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkDel(link)
	}
	if err != nil {
		t.Errorf("remove %s: %v", name, err)
	}
}
