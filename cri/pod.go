package cri

import (
	"context"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/sandbox"
)

// RunPodSandbox makes a pod that is READY and networked when it returns. A
// retry with the same identity (name, namespace, uid, attempt) joins the first
// try or returns its pod.
func (s *Server) RunPodSandbox(ctx context.Context, req *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error) {
	return s.runPod(ctx, req, false)
}

// RunPod is RunPodSandbox of the admin service: the pod may be served by the
// built-in network.
func (s *Server) RunPod(ctx context.Context, req *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error) {
	return s.runPod(ctx, req, true)
}

func (s *Server) runPod(ctx context.Context, req *runtimeapi.RunPodSandboxRequest, builtin bool) (*runtimeapi.RunPodSandboxResponse, error) {
	pod, err := s.Pods.Run(ctx, sandbox.RunRequest{
		Config:  req.GetConfig(),
		Handler: req.GetRuntimeHandler(),
		Builtin: builtin,
	})
	if err != nil {
		return nil, err
	}
	return &runtimeapi.RunPodSandboxResponse{PodSandboxId: pod.ID()}, nil
}

// StopPodSandbox kills the pod's containers and frees its network; the pod
// stays, NOTREADY. Nil for a pod that does not exist.
func (s *Server) StopPodSandbox(ctx context.Context, req *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error) {
	pod, err := s.anyPod(req.GetPodSandboxId())
	if err == nil {
		err = pod.Stop(ctx)
	}
	if err := ignoreNotFound(err); err != nil {
		return nil, err
	}
	return &runtimeapi.StopPodSandboxResponse{}, nil
}

// RemovePodSandbox stops the pod and removes it with its containers. Nil for a
// pod that does not exist.
func (s *Server) RemovePodSandbox(ctx context.Context, req *runtimeapi.RemovePodSandboxRequest) (*runtimeapi.RemovePodSandboxResponse, error) {
	pod, err := s.anyPod(req.GetPodSandboxId())
	if err == nil {
		err = pod.Remove(ctx)
	}
	if err := ignoreNotFound(err); err != nil {
		return nil, err
	}
	return &runtimeapi.RemovePodSandboxResponse{}, nil
}

// PodSandboxStatus describes a pod; NotFound if there is none. The response's
// timestamp stays 0: the kubelet takes another value as a promise that
// containers_statuses is filled in.
func (s *Server) PodSandboxStatus(_ context.Context, req *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	pod, err := s.pod(req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	resp := &runtimeapi.PodSandboxStatusResponse{Status: pod.Status()}
	if req.GetVerbose() {
		resp.Info = pod.Info()
	}
	return resp, nil
}

// ListPodSandbox lists the pods that meet all conditions of the filter, newest
// first.
func (s *Server) ListPodSandbox(_ context.Context, req *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	pods, err := s.podsMatching(req.GetFilter())
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ListPodSandboxResponse{Items: pods}, nil
}

func (s *Server) pod(id string) (*sandbox.Pod, error) {
	if err := required("pod_sandbox_id", id); err != nil {
		return nil, err
	}
	return s.Pods.Pod(id)
}

// anyPod finds also a pod that is still being created: to stop or remove it is
// to give up its creation.
func (s *Server) anyPod(id string) (*sandbox.Pod, error) {
	if err := required("pod_sandbox_id", id); err != nil {
		return nil, err
	}
	return s.Pods.Find(id)
}
