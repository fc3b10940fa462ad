package cri

import (
	"context"
	"math"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/sandbox"
)

// CreateContainer makes a container of a READY pod, in state CREATED. All of
// its config is checked here, so that a start can fail only for the kernel's or
// the OCI runtime's reasons. The request's sandbox_config is not read: the pod
// keeps its own.
func (s *Server) CreateContainer(ctx context.Context, req *runtimeapi.CreateContainerRequest) (*runtimeapi.CreateContainerResponse, error) {
	pod, err := s.pod(req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	ctr, err := pod.CreateContainer(ctx, req.GetConfig())
	if err != nil {
		return nil, err
	}
	return &runtimeapi.CreateContainerResponse{ContainerId: ctr.ID()}, nil
}

// StartContainer returns when the container's first process runs.
func (s *Server) StartContainer(ctx context.Context, req *runtimeapi.StartContainerRequest) (*runtimeapi.StartContainerResponse, error) {
	ctr, err := s.container(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	if err := ctr.Start(ctx); err != nil {
		return nil, err
	}
	return &runtimeapi.StartContainerResponse{}, nil
}

// StopContainer sends the stop signal and, after the timeout, SIGKILL; a
// timeout of 0 kills at once. Nil for a container that has ended or does not
// exist.
func (s *Server) StopContainer(ctx context.Context, req *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	grace, err := seconds("timeout", req.GetTimeout())
	if err != nil {
		return nil, err
	}
	ctr, err := s.container(req.GetContainerId())
	if err == nil {
		err = ctr.Stop(ctx, grace)
	}
	if err := ignoreNotFound(err); err != nil {
		return nil, err
	}
	return &runtimeapi.StopContainerResponse{}, nil
}

// RemoveContainer kills the container if it runs and removes it; its log stays,
// it is the kubelet's. Nil for a container that does not exist.
func (s *Server) RemoveContainer(ctx context.Context, req *runtimeapi.RemoveContainerRequest) (*runtimeapi.RemoveContainerResponse, error) {
	ctr, err := s.container(req.GetContainerId())
	if err == nil {
		err = ctr.Remove(ctx)
	}
	if err := ignoreNotFound(err); err != nil {
		return nil, err
	}
	return &runtimeapi.RemoveContainerResponse{}, nil
}

// ContainerStatus describes a container; NotFound if there is none.
func (s *Server) ContainerStatus(_ context.Context, req *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	ctr, err := s.container(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	resp := &runtimeapi.ContainerStatusResponse{Status: ctr.Status()}
	if req.GetVerbose() {
		resp.Info = ctr.Info()
	}
	return resp, nil
}

// ListContainers lists the containers that meet all conditions of the filter,
// newest first.
func (s *Server) ListContainers(_ context.Context, req *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	containers, err := s.containersMatching(req.GetFilter())
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ListContainersResponse{Containers: containers}, nil
}

func (s *Server) container(id string) (*sandbox.Container, error) {
	if err := required("container_id", id); err != nil {
		return nil, err
	}
	return s.Pods.Container(id)
}

// seconds is a request's timeout as a duration. What a duration cannot hold is
// 292 years and more, and means just that.
func seconds(field string, n int64) (time.Duration, error) {
	if n < 0 {
		return 0, &sandbox.InvalidError{Field: field, Reason: "must not be negative"}
	}
	if n > int64(math.MaxInt64/time.Second) {
		return math.MaxInt64, nil
	}
	return time.Duration(n) * time.Second, nil
}
