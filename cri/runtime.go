package cri

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/cri/admin"
	"berth/sandbox"
)

// Version names the runtime. The kubelet ends itself when version, which is its
// own API's and not CRI's, is not "0.1.0".
func (s *Server) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{
		Version:           "0.1.0",
		RuntimeName:       "berth",
		RuntimeVersion:    admin.Version,
		RuntimeApiVersion: "v1",
	}, nil
}

// Status tells the kubelet whether it may start pods. It lists the default
// runtime handler twice: under its name and under "".
func (s *Server) Status(ctx context.Context, req *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	resp := &runtimeapi.StatusResponse{
		Status: &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{
			condition(ctx, runtimeapi.RuntimeReady, "RuntimeNotReady", s.Runtime),
			condition(ctx, runtimeapi.NetworkReady, "NetworkNotReady", s.Network),
		}},
		// Admission of pods that ask for a feature depends on these: a feature
		// is named here only when it is built.
		RuntimeHandlers: []*runtimeapi.RuntimeHandler{{Name: "", Features: handlerFeatures(s.Pods.Runtimes[s.Pods.DefaultRuntime])}},
		Features:        &runtimeapi.RuntimeFeatures{SupplementalGroupsPolicy: true, MountOptions: true},
	}
	for _, name := range slices.Sorted(maps.Keys(s.Pods.Runtimes)) {
		resp.RuntimeHandlers = append(resp.RuntimeHandlers,
			&runtimeapi.RuntimeHandler{Name: name, Features: handlerFeatures(s.Pods.Runtimes[name])})
	}
	if req.GetVerbose() {
		resp.Info = s.Info()
	}
	return resp, nil
}

func handlerFeatures(r sandbox.Runtime) *runtimeapi.RuntimeHandlerFeatures {
	return &runtimeapi.RuntimeHandlerFeatures{
		RecursiveReadOnlyMounts: r.Features().RecursiveReadOnly,
		UserNamespaces:          r.UserNamespaces() == nil,
	}
}

func condition(ctx context.Context, kind, reason string, part Checker) *runtimeapi.RuntimeCondition {
	if part != nil {
		if err := part.Status(ctx); err != nil {
			return &runtimeapi.RuntimeCondition{Type: kind, Reason: reason, Message: err.Error()}
		}
	}
	return &runtimeapi.RuntimeCondition{Type: kind, Status: true}
}

// RuntimeConfig names the cgroup driver in use. It must be set: the enum's zero
// is SYSTEMD.
func (s *Server) RuntimeConfig(context.Context, *runtimeapi.RuntimeConfigRequest) (*runtimeapi.RuntimeConfigResponse, error) {
	return &runtimeapi.RuntimeConfigResponse{
		Linux: &runtimeapi.LinuxRuntimeConfiguration{CgroupDriver: runtimeapi.CgroupDriver_CGROUPFS},
	}, nil
}

// UpdateRuntimeConfig brings the node's pod CIDR, two of them with a comma
// between. The CNI plugins of a cluster learn it from the cluster itself, so that
// nothing is left to do here.
func (s *Server) UpdateRuntimeConfig(_ context.Context, req *runtimeapi.UpdateRuntimeConfigRequest) (*runtimeapi.UpdateRuntimeConfigResponse, error) {
	if cidrs := req.GetRuntimeConfig().GetNetworkConfig().GetPodCidr(); cidrs != "" {
		for cidr := range strings.SplitSeq(cidrs, ",") {
			if _, err := netip.ParsePrefix(cidr); err != nil {
				return nil, &sandbox.InvalidError{Field: "runtime_config.network_config.pod_cidr", Reason: err.Error()}
			}
		}
	}
	return &runtimeapi.UpdateRuntimeConfigResponse{}, nil
}
