package cri

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/cri/admin"
	"berth/test/expect"
)

func TestVersion(t *testing.T) {
	n := newNode(t)
	v := must[*runtimeapi.VersionResponse](t)(n.Version(t.Context(), &runtimeapi.VersionRequest{}))
	if v.GetVersion() != "0.1.0" || v.GetRuntimeApiVersion() != "v1" || v.GetRuntimeName() != "berth" || v.GetRuntimeVersion() == "" {
		t.Errorf("the kubelet would not accept %v", v)
	}
}

func TestStatus(t *testing.T) {
	n := newNode(t)
	conditions := func(s *runtimeapi.StatusResponse) string {
		var all []string
		for _, c := range s.GetStatus().GetConditions() {
			all = append(all, fmt.Sprintf("%s=%v %s", c.GetType(), c.GetStatus(), c.GetMessage()))
		}
		return strings.Join(all, "; ")
	}
	s := must[*runtimeapi.StatusResponse](t)(n.Status(t.Context(), &runtimeapi.StatusRequest{}))
	if got, want := conditions(s), "RuntimeReady=true ; NetworkReady=true "; got != want {
		t.Errorf("conditions %q, want %q", got, want)
	}
	if len(s.GetInfo()) != 0 {
		t.Errorf("info without verbose: %v", s.GetInfo())
	}
	var handlers []string
	for _, h := range s.GetRuntimeHandlers() {
		handlers = append(handlers, h.GetName())
		if h.GetFeatures() == nil {
			t.Errorf("handler %q has no features", h.GetName())
		}
		if got, want := h.GetFeatures().GetUserNamespaces(), h.GetName() != "slow"; got != want {
			t.Errorf("handler %q gives user namespaces: %v, want %v", h.GetName(), got, want)
		}
	}
	if want := []string{"", "fast", "slow"}; !slices.Equal(handlers, want) {
		t.Errorf("handlers %q, want %q", handlers, want)
	}

	n.network.mu.Lock()
	n.network.status = errors.New("no network configuration in /etc/cni/net.d")
	n.network.mu.Unlock()
	s = must[*runtimeapi.StatusResponse](t)(n.Status(t.Context(), &runtimeapi.StatusRequest{Verbose: true}))
	if got, want := conditions(s), "RuntimeReady=true ; NetworkReady=false no network configuration in /etc/cni/net.d"; got != want {
		t.Errorf("conditions %q, want %q", got, want)
	}
	if s.GetInfo()["config"] != "{}" {
		t.Errorf("verbose info: %v", s.GetInfo())
	}
}

func TestRuntimeConfig(t *testing.T) {
	n := newNode(t)
	c := must[*runtimeapi.RuntimeConfigResponse](t)(n.RuntimeConfig(t.Context(), &runtimeapi.RuntimeConfigRequest{}))
	if c.GetLinux() == nil || c.GetLinux().GetCgroupDriver() != runtimeapi.CgroupDriver_CGROUPFS {
		t.Errorf("cgroup driver: %v", c)
	}
	must[*runtimeapi.UpdateRuntimeConfigResponse](t)(n.UpdateRuntimeConfig(t.Context(), &runtimeapi.UpdateRuntimeConfigRequest{
		RuntimeConfig: &runtimeapi.RuntimeConfig{NetworkConfig: &runtimeapi.NetworkConfig{PodCidr: "10.1.0.0/24"}},
	}))
}

// Every RPC of CRI answers: those that are not built, with Unimplemented.
func TestAllRPCsAreRegistered(t *testing.T) {
	n := newNode(t)
	services := n.server.grpcServer().GetServiceInfo()
	for name, want := range map[string]int{"runtime.v1.RuntimeService": 37, "runtime.v1.ImageService": 6, "berth.admin.v1.Admin": 2} {
		if got := len(services[name].Methods); got != want {
			t.Errorf("%s has %d RPCs, want %d", name, got, want)
		}
	}
	_, err := n.CheckpointContainer(t.Context(), &runtimeapi.CheckpointContainerRequest{})
	expect.Code(t, "CheckpointContainer", err, codes.Unimplemented)
	events, err := n.GetContainerEvents(t.Context(), &runtimeapi.GetEventsRequest{})
	if err == nil {
		_, err = events.Recv()
	}
	expect.Code(t, "GetContainerEvents", err, codes.Unimplemented)
}

func TestMessagesUpTo16MiB(t *testing.T) {
	n := newNode(t)
	config := podConfig("big")
	config.Annotations = map[string]string{"a": strings.Repeat("x", admin.MaxMessage-1<<10)}
	_, err := n.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: config})
	expect.Code(t, "a pod of 16 MiB", err, codes.InvalidArgument, "config") // read, and judged
}
