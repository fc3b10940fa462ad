//go:build node

package node

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"berth/test/expect"
)

// process is what the kernel says of a process that is executed in a container,
// by the names of /proc/PID/status.
func process(t *testing.T, pod, container string) map[string]string {
	t.Helper()
	status := map[string]string{}
	for line := range strings.Lines(runIn(t, pod, container, "cat /proc/self/status")) {
		name, value, _ := strings.Cut(line, ":")
		status[name] = strings.Join(strings.Fields(value), " ")
	}
	return status
}

func testRestricted(t *testing.T, n *node) {
	status := process(t, "restricted", "main")
	for name, want := range map[string]string{
		"Uid": "65534 65534 65534 65534", "Gid": "65534 65534 65534 65534", "Groups": "2000 3000 65534",
		"CapPrm": "0000000000000000", "CapBnd": "0000000000000000", "NoNewPrivs": "1", "Seccomp": "2",
	} {
		if status[name] != want {
			t.Errorf("%s is %q, want %q", name, status[name], want)
		}
	}
	said := says(t, "restricted", "main", "touch /x; touch /scratch/x; ls -n /scratch/x")
	if !strings.Contains(said, "Read-only file system") || !strings.Contains(said, " 65534    2000 ") {
		t.Errorf("it wrote as %q", said)
	}
}

func testDriver(t *testing.T, n *node) {
	if status := process(t, "driver", "main"); status["Seccomp"] != "0" || status["NoNewPrivs"] != "0" || status["CapEff"] != status["CapBnd"] {
		t.Errorf("it is not privileged: %v", status)
	}
	// It sees the node's processes, this one among them.
	if said := runIn(t, "driver", "main", fmt.Sprintf("cat /proc/%d/comm", os.Getpid())); said != "node.test\n" {
		t.Errorf("this process is %q to it", said)
	}
	made := filepath.Join(n.shared("driver"), "made")
	says(t, "driver", "main", "mkdir /host/made && mount -t tmpfs made /host/made")
	if !slices.Contains(expect.Mounts(t), made) {
		t.Error("the node does not see the mount that it made")
	}
	says(t, "driver", "main", "umount /host/made")
	if slices.Contains(expect.Mounts(t), made) {
		t.Error("the node still sees the mount")
	}
}

func testUserNamespace(t *testing.T, n *node) {
	if status := process(t, "userns", "main"); status["Uid"] != "0 0 0 0" {
		t.Errorf("it is not root: %v", status["Uid"])
	}
	mapped := regexp.MustCompile(`^\s*0\s+([1-9]\d*)\s+65536\s*$`)
	if said := runIn(t, "userns", "main", "cat /proc/self/uid_map"); !mapped.MatchString(said) {
		t.Errorf("its users are %q", said)
	}
	if said := says(t, "userns", "main", "touch /tmp/own /scratch/own; ls -n /scratch/own /etc/hosts /tmp/own"); strings.Count(said, " 0 ") < 3 || strings.Contains(said, "65534") {
		t.Errorf("its files belong to %q", said)
	}
}
