package conformance

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestVersion(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		v, err := n.Version(t.Context(), &runtimeapi.VersionRequest{Version: "0.1.0"})
		if err != nil {
			t.Fatal(err)
		}
		if v.GetVersion() != "0.1.0" || v.GetRuntimeName() == "" || v.GetRuntimeVersion() == "" || v.GetRuntimeApiVersion() != "v1" {
			t.Errorf("the kubelet would end itself: %v", v)
		}
	})
}

func TestStatus(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		s, err := n.Status(t.Context(), &runtimeapi.StatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for i, kind := range []string{"RuntimeReady", "NetworkReady"} {
			if c := s.GetStatus().GetConditions()[i]; c.GetType() != kind || !c.GetStatus() {
				t.Errorf("condition %v", c)
			}
		}
		var handlers []string
		for _, h := range s.GetRuntimeHandlers() {
			handlers = append(handlers, h.GetName())
			if h.GetFeatures() == nil {
				t.Errorf("handler %q has no features", h.GetName())
			}
		}
		for _, want := range []string{"", n.handler} {
			if !slices.Contains(handlers, want) {
				t.Errorf("handlers %q lack %q", handlers, want)
			}
		}
		if len(s.GetInfo()) != 0 {
			t.Error("info without verbose")
		}
		if s, err := n.Status(t.Context(), &runtimeapi.StatusRequest{Verbose: true}); err != nil || len(s.GetInfo()) == 0 {
			t.Errorf("verbose: %v, %v", s.GetInfo(), err)
		}
	})
}

// A node of a cluster must not be ready before the cluster's own network has
// come, and then be ready at once.
func TestNetworkReadyTellsTheTruth(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		n.killDaemon(t)
		n.configure(t, false)
		n.startDaemon(t)
		ready := func() *runtimeapi.RuntimeCondition {
			s, err := n.Status(t.Context(), &runtimeapi.StatusRequest{})
			if err != nil {
				t.Fatal(err)
			}
			return s.GetStatus().GetConditions()[1]
		}
		if c := ready(); c.GetStatus() || c.GetReason() == "" || !strings.Contains(c.GetMessage(), n.netConf) {
			t.Errorf("without a configuration: %v", c)
		}
		_, err := n.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: podConfig(t, "early")})
		if err == nil {
			t.Error("a pod got a network where there is none")
		}
		if pods := n.pods(t, nil); len(pods) != 0 {
			t.Errorf("a pod without a network is left: %v", pods)
		}
		conf := `{"cniVersion": "1.0.0", "name": "own", "plugins": [{"type": "loopback"}]}`
		if err := os.WriteFile(filepath.Join(n.netConf, "10-own.conflist"), []byte(conf), 0o600); err != nil {
			t.Fatal(err)
		}
		if c := ready(); !c.GetStatus() {
			t.Errorf("with a configuration: %v", c)
		}
	})
}

func TestRuntimeConfig(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		c, err := n.RuntimeConfig(t.Context(), &runtimeapi.RuntimeConfigRequest{})
		if err != nil || c.GetLinux() == nil || c.GetLinux().GetCgroupDriver() != runtimeapi.CgroupDriver_CGROUPFS {
			t.Errorf("cgroup driver: %v, %v", c, err)
		}
		_, err = n.UpdateRuntimeConfig(t.Context(), &runtimeapi.UpdateRuntimeConfigRequest{
			RuntimeConfig: &runtimeapi.RuntimeConfig{NetworkConfig: &runtimeapi.NetworkConfig{PodCidr: "10.9.0.0/24"}},
		})
		if err != nil {
			t.Errorf("pod CIDR: %v", err)
		}
	})
}

// An RPC either works or says Unimplemented: the kubelet and crictl ask for all
// of them.
func TestEveryRPCAnswers(t *testing.T) {
	notBuilt := []string{
		"CheckpointContainer", "CheckpointPod", "RestorePod", "ListMetricDescriptors", "ListPodSandboxMetrics",
		"UpdatePodSandboxResources",
	}
	forEachRuntime(t, func(t *testing.T, n *node) {
		for _, service := range []grpc.ServiceDesc{runtimeapi.RuntimeService_ServiceDesc, runtimeapi.ImageService_ServiceDesc} {
			for _, method := range service.Methods {
				// An empty message is a request of every kind.
				path := "/" + service.ServiceName + "/" + method.MethodName
				err := n.conn.Invoke(t.Context(), path, &runtimeapi.VersionRequest{}, &runtimeapi.RemoveImageResponse{})
				if got, want := status.Code(err) == codes.Unimplemented, slices.Contains(notBuilt, method.MethodName); got != want {
					t.Errorf("%s: %v", method.MethodName, err)
				}
			}
		}
	})
}

// Whoever can connect is root on the node.
func TestSocketIsRootsAlone(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		info, err := os.Stat(n.socket())
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode() != os.ModeSocket|0o600 {
			t.Errorf("the socket has mode %v", info.Mode())
		}
	})
}

// A file that changes more than can change while berthd runs changes nothing.
func TestReload(t *testing.T) {
	n := start(t, "runc")
	networkReady := func() bool {
		s, err := n.Status(t.Context(), &runtimeapi.StatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return s.GetStatus().GetConditions()[1].GetStatus()
	}
	hangup := func() {
		if err := n.berthd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
	}
	n.configure(t, false)
	hangup()
	eventually(t, "the network to be gone", func() bool { return !networkReady() })

	n.configure(t, true)
	file := filepath.Join(n.data, "berthd.toml")
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for change, reason := range map[string]string{
		"[container]\nnofile = 1000\n": "a new container.nofile needs a restart of berthd",
		"nonsense = 1\n":               "unknown key network.nonsense",
	} {
		if err := os.WriteFile(file, append(good[:len(good):len(good)], change...), 0o600); err != nil {
			t.Fatal(err)
		}
		hangup()
		eventually(t, reason, func() bool {
			log, err := os.ReadFile(filepath.Join(n.data, "berthd.log"))
			return err == nil && bytes.Contains(log, []byte(reason))
		})
	}
	if networkReady() {
		t.Error("half of a refused file was taken")
	}
	n.configure(t, true)
	hangup()
	eventually(t, "the network", networkReady)
}
