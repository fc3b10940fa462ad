package sandbox

import (
	"bytes"
	"cmp"
	"slices"
	"strings"
	"syscall"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"berth/image"
)

func TestLookAround(t *testing.T) {
	var own syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &own); err != nil {
		t.Fatal(err)
	}
	log := captureLog(t)
	for _, want := range []uint64{64, 0, 1 << 60} {
		n, err := lookAround(want)
		if err != nil {
			t.Fatal(err)
		}
		want = cmp.Or(want, defaultNoFile)
		got := n.openFiles()
		if got > want || got < min(want, own.Max) {
			t.Errorf("%d of %d open files, this process may have %d", got, want, own.Max)
		}
		klog.Flush()
		if warned := strings.Contains(log.String(), "container.nofile"); warned != (got < want) {
			t.Errorf("%d of %d open files: the log is %q", got, want, log)
		}
		log.Reset()
		if n.hostname == "" {
			t.Error("no hostname")
		}
		ownOOM, err := ownOOMScoreAdj()
		if err != nil {
			t.Fatal(err)
		}
		least := -1000
		if !slices.Contains(n.capabilities, "CAP_SYS_RESOURCE") {
			least = ownOOM
		}
		if n.leastOOM != least {
			t.Errorf("least oom_score_adj: %d, want %d", n.leastOOM, least)
		}
	}
	if id, err := bootID(); err != nil || len(id) != 36 {
		t.Errorf("boot id %q, %v", id, err)
	}
}

// captureLog returns what is logged during the test.
func captureLog(t *testing.T) *bytes.Buffer {
	t.Helper()
	state := klog.CaptureState()
	t.Cleanup(state.Restore)
	klog.LogToStderr(false)
	log := &bytes.Buffer{}
	klog.SetOutput(log)
	return log
}

// An oom_score_adj that this process may not set would keep the container from
// starting at all.
func TestOOMScoreAdjIsClipped(t *testing.T) {
	for want, got := range map[int64]int{-1000: -500, -500: -500, 0: 0, 1000: 1000} {
		config := &runtimeapi.ContainerConfig{Linux: &runtimeapi.LinuxContainerConfig{Resources: &runtimeapi.LinuxContainerResources{OomScoreAdj: want}}}
		facts, err := gather(t.Context(), nil, config, "pod", &image.Image{}, openDir(t, t.TempDir()), node{leastOOM: -500})
		if err != nil || facts.OOMScoreAdj != got {
			t.Errorf("%d: %d, %v, want %d", want, facts.OOMScoreAdj, err, got)
		}
	}
}
