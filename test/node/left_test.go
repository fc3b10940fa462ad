//go:build node

package node

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/oci"
	"berth/oci/cgroup"
)

// testNothingIsLeft takes all manifests away. The kubelet stops the pods at once
// and removes them when it collects garbage, once a minute.
func testNothingIsLeft(t *testing.T, n *node) {
	rest, err := os.ReadDir(n.manifests())
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range rest {
		n.delete(t, strings.TrimSuffix(file.Name(), ".yaml"))
	}
	within(t, 3*time.Minute, "the runtime has no pods", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		resp, err := n.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return len(resp.GetItems()) == 0
	})
	var left []string
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("left:\n%s", strings.Join(left, "\n"))
		}
	})
	// The kubelet's own part of a pod goes a little later.
	within(t, time.Minute, "nothing is left", func() bool {
		left = n.left(t)
		return len(left) == 0
	})
}

// left is all that a pod could have left on the machine.
func (n *node) left(t *testing.T) (all []string) {
	t.Helper()
	for _, point := range n.mounts(t) {
		all = append(all, "mount "+point)
	}
	links, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		if strings.HasPrefix(link.Name, "veth") {
			all = append(all, "link "+link.Name)
		}
	}
	for _, parent := range []string{cgroupRoot + "/kubepods", cgroupRoot + "/kubepods/burstable", cgroupRoot + "/kubepods/besteffort", oci.CgroupRoot} {
		for _, child := range cgroup.Children(parent) {
			if child != "burstable" && child != "besteffort" {
				all = append(all, "cgroup "+parent+"/"+child)
			}
		}
	}
	for pid, program := range children(t, n.keeper(t)) {
		if program != "berth-keeper" {
			all = append(all, fmt.Sprintf("process %d: %s", pid, program))
		}
	}
	for what, pattern := range map[string]string{
		"record":             n.run + "/pods/*",
		"mirrored record":    n.dir + "/data/pods/*",
		"writable layer":     n.dir + "/data/containers/*",
		"attachment":         n.dir + "/data/cni/*/*",
		"pod of the kubelet": n.dir + "/kubelet/pods/*",
		"log":                n.podLogs() + "/*",
		"link to a log":      "/var/log/containers/*",
		"address":            n.dir + "/ipam/pods/*.*.*.*",
		"network namespace":  oci.NetNSDir + "/*",
	} {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			all = append(all, what+" "+path)
		}
	}
	return all
}
