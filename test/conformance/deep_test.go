package conformance

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// A container can nest directories deeper than berthd may have files open: they are
// deleted with it, and meanwhile everything else goes on.
func TestDeepWritableLayerGoes(t *testing.T) {
	onOneNode(t, func(t *testing.T, n *node) {
		pod, other := n.running(t, forever)
		deep := n.startContainer(t, pod, n.shell("deep", forever))
		nest(t, filepath.Join(n.data, "containers", deep, "upper"), 60_000)
		n.stopContainer(t, deep, 0)
		if _, err := n.RemoveContainer(t.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: deep}); err != nil {
			t.Fatal(err)
		}
		trash := filepath.Join(n.data, "trash")
		within(t, 4*patience, "nothing of it is left", func() bool {
			if open := n.files(t, n.berthd.Process.Pid); open > 500 {
				t.Fatalf("berthd has %d files open", open)
			}
			n.exec(t, other, "true")
			left, err := os.ReadDir(trash)
			if err != nil {
				t.Fatal(err)
			}
			return len(left) == 0
		})
	})
}

// nest makes so many directories, each in the one before.
func nest(t *testing.T, dir string, depth int) {
	t.Helper()
	at, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	for ; depth > 0 && err == nil; depth-- {
		if err = unix.Mkdirat(at, "d", 0o755); err != nil {
			break
		}
		var below int
		below, err = unix.Openat(at, "d", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		unix.Close(at)
		at = below
	}
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(at)
}
