//go:build node

package node

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"

	"berth/test/leak"
)

// nodeAddress is the node's only one.
const nodeAddress = "192.0.2.1"

// alone makes a machine of the namespaces that make test-node has made: mounts
// propagate, the network has an address, and what the kubelet writes outside of
// its directories goes nowhere. It fails t in the namespaces of the machine itself.
func alone(t *testing.T) {
	t.Helper()
	leak.NeedRoot(t)
	if !apart() {
		t.Fatal("these tests change mounts and the network: run them by `make test-node`, in namespaces of their own")
	}
	if err := syscall.Mount("", "/", "", syscall.MS_SHARED|syscall.MS_REC, ""); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"/var/lib/kubelet", "/var/log/containers"} {
		mountTmpfs(t, dir)
	}
	ip(t, "link set lo up")
	ip(t, "link add node0 type bridge")
	t.Cleanup(func() { ip(t, "link del node0") })
	ip(t, fmt.Sprintf("address add %s/24 dev node0", nodeAddress))
	ip(t, "link set node0 up")
}

// apart tells whether the network was nobody's before the first test: it is made
// with the mounts.
var apart = sync.OnceValue(func() bool {
	interfaces, err := net.Interfaces()
	return err == nil && len(interfaces) == 1 && interfaces[0].Flags&net.FlagUp == 0
})

// mountTmpfs covers a directory until the test ends. One that was not there goes
// again.
func mountTmpfs(t *testing.T, dir string) {
	t.Helper()
	switch err := os.Mkdir(dir, 0o755); {
	case err == nil:
		t.Cleanup(func() {
			if err := os.Remove(dir); err != nil {
				t.Error(err)
			}
		})
	case !errors.Is(err, fs.ErrExist):
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		t.Fatalf("mount on %s: %v", dir, err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
}

func ip(t *testing.T, command string) {
	t.Helper()
	if out, err := exec.Command("ip", strings.Fields(command)...).CombinedOutput(); err != nil {
		t.Fatalf("ip %s: %v: %s", command, err, out)
	}
}
