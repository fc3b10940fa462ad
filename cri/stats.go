package cri

import (
	"context"
	"fmt"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/sandbox"
)

// ContainerStats tells what a container uses; NotFound if there is none. Unlike
// other calls it takes the full id alone: who watches an id must not be given the
// numbers of another one once that is gone.
func (s *Server) ContainerStats(ctx context.Context, req *runtimeapi.ContainerStatsRequest) (*runtimeapi.ContainerStatsResponse, error) {
	id := req.GetContainerId()
	ctr, err := s.container(id)
	if err == nil && ctr.ID() != id {
		err = fmt.Errorf("container %q: %w: stats need the full id", id, sandbox.ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	stats, err := ctr.Stats(ctx)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ContainerStatsResponse{Stats: stats}, nil
}

// ListContainerStats tells what the running containers use that meet all
// conditions of the filter. One whose numbers cannot be read is left out: an error
// would take the numbers of all others, and eviction, from the kubelet.
func (s *Server) ListContainerStats(ctx context.Context, req *runtimeapi.ListContainerStatsRequest) (*runtimeapi.ListContainerStatsResponse, error) {
	f := req.GetFilter()
	candidates, err := s.containerCandidates(&runtimeapi.ContainerFilter{Id: f.GetId(), PodSandboxId: f.GetPodSandboxId()})
	if err := ignoreNotFound(err); err != nil {
		return nil, err
	}
	var matching []*sandbox.Container
	for _, ctr := range candidates {
		if labelsMatch(f.GetLabelSelector(), ctr.Summary().GetLabels()) {
			matching = append(matching, ctr)
		}
	}
	stats, err := sandbox.ContainerStats(ctx, matching)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ListContainerStatsResponse{Stats: stats}, nil
}

// PodSandboxStats is for pods what ContainerStats is for containers. The kubelet
// asks for the pod "" at its start, to learn whether the call is there.
func (s *Server) PodSandboxStats(ctx context.Context, req *runtimeapi.PodSandboxStatsRequest) (*runtimeapi.PodSandboxStatsResponse, error) {
	id := req.GetPodSandboxId()
	pod, err := s.pod(id)
	if err == nil && pod.ID() != id {
		err = fmt.Errorf("pod %q: %w: stats need the full id", id, sandbox.ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	stats, err := pod.Stats(ctx)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.PodSandboxStatsResponse{Stats: stats}, nil
}

// ListPodSandboxStats is for pods what ListContainerStats is for containers; it
// lists those that are READY.
func (s *Server) ListPodSandboxStats(ctx context.Context, req *runtimeapi.ListPodSandboxStatsRequest) (*runtimeapi.ListPodSandboxStatsResponse, error) {
	f := req.GetFilter()
	candidates, err := s.podCandidates(&runtimeapi.PodSandboxFilter{Id: f.GetId(), LabelSelector: f.GetLabelSelector()})
	if err != nil {
		return nil, err
	}
	var matching []*sandbox.Pod
	for _, pod := range candidates {
		if labelsMatch(f.GetLabelSelector(), pod.Summary().GetLabels()) {
			matching = append(matching, pod)
		}
	}
	stats, err := sandbox.PodStats(ctx, matching)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ListPodSandboxStatsResponse{Stats: stats}, nil
}
