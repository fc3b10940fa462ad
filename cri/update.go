package cri

import (
	"context"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/sandbox"
)

// UpdateContainerResources changes what a created or running container may use,
// as a whole or not at all; what the request leaves zero or empty stays. The
// request's annotations have no effect.
func (s *Server) UpdateContainerResources(ctx context.Context, req *runtimeapi.UpdateContainerResourcesRequest) (*runtimeapi.UpdateContainerResourcesResponse, error) {
	ctr, err := s.container(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	if req.GetWindows() != nil {
		return nil, &sandbox.InvalidError{Field: "windows", Reason: "this is Linux"}
	}
	if err := ctr.Update(ctx, req.GetLinux()); err != nil {
		return nil, err
	}
	return &runtimeapi.UpdateContainerResourcesResponse{}, nil
}
