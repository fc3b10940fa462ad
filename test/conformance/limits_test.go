package conformance

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/test/leak"
)

// limitBerthd starts berthd anew as one that may have so many open files, without
// the capability to change that, and with soft limits that are nobody's wish.
func (n *node) limitBerthd(t *testing.T, openFiles int) {
	t.Helper()
	leak.NeedTool(t, "setpriv")
	n.startBehind(t, fmt.Sprintf("ulimit -n %d; ulimit -Sl 4000; ulimit -Sq 4096; ulimit -Su 4000; ulimit -Si 4001; ulimit -Sv 900000000", openFiles),
		"setpriv --bounding-set=-sys_resource")
}

// startBehind starts berthd anew: a shell runs prepare, then berthd as the last
// argument of with.
func (n *node) startBehind(t *testing.T, prepare, with string) {
	t.Helper()
	n.stopDaemon(t)
	real := filepath.Join(n.bin, "berthd")
	n.bin = t.TempDir()
	for _, name := range []string{"berth", "berth-keeper"} {
		if err := os.Symlink(filepath.Join(filepath.Dir(real), name), filepath.Join(n.bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	script := fmt.Sprintf("#!/bin/bash\nset -e; %s\nexec %s %s \"$@\"\n", prepare, with, real)
	if err := os.WriteFile(filepath.Join(n.bin, "berthd"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	n.startDaemon(t)
}

// What berthd has been started with is no limit of a container, unless berthd may
// not exceed it: then the node says so.
func TestLimits(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		n.limitBerthd(t, 4321)
		n.pull(t, n.busybox)
		_, run, exec := n.bothSay(t, n.runPod(t, podConfig(t, "limits")), "limits", "cat /proc/self/limits", nil)
		if run != exec {
			t.Errorf("run says\n%s\nexec says\n%s", run, exec)
		}
		for name, want := range map[string]string{
			"Max cpu time": "unlimited unlimited", "Max file size": "unlimited unlimited", "Max data size": "unlimited unlimited",
			"Max stack size": "8388608 unlimited", "Max resident set": "unlimited unlimited", "Max open files": "4321 4321",
			"Max address space": "unlimited unlimited", "Max file locks": "unlimited unlimited", "Max msgqueue size": "819200 819200",
			"Max nice priority": "0 0", "Max realtime priority": "0 0", "Max realtime timeout": "unlimited unlimited",
		} {
			_, values, found := strings.Cut(run, name)
			if fields := strings.Fields(values); !found || strings.Join(fields[:2], " ") != want {
				t.Errorf("%s: %q, want %s", name, fields[:2], want)
			}
		}

		s, err := n.Status(t.Context(), &runtimeapi.StatusRequest{Verbose: true})
		if err != nil {
			t.Fatal(err)
		}
		var limits struct{ Nofile int }
		if err := json.Unmarshal([]byte(s.GetInfo()["limits"]), &limits); err != nil || limits.Nofile != 4321 {
			t.Errorf("crictl info: %v, %v, want 4321 open files", limits, err)
		}
		n.berth(t, "status").want(t, "status", 0, "4321, not the 1048576 of container.nofile", "")
		log, err := os.ReadFile(filepath.Join(n.data, "berthd.log"))
		if err != nil {
			t.Fatal(err)
		}
		if said := strings.Count(string(log), "Containers may have 4321 open files"); said != 1 {
			t.Errorf("the log has the warning %d times, want once", said)
		}
	})
}
