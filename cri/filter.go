package cri

import (
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/sandbox"
)

// podsMatching returns the pods that meet all conditions of f. An id that no
// pod has matches nothing, which is no error.
func (s *Server) podsMatching(f *runtimeapi.PodSandboxFilter) ([]*runtimeapi.PodSandbox, error) {
	candidates, err := s.podCandidates(f)
	if err != nil {
		return nil, err
	}
	var matching []*runtimeapi.PodSandbox
	for _, pod := range candidates {
		if p := pod.Summary(); podMatches(f, p) {
			matching = append(matching, p)
		}
	}
	return matching, nil
}

// podCandidates narrows the pods down by the indexes there are: id and uid.
func (s *Server) podCandidates(f *runtimeapi.PodSandboxFilter) ([]*sandbox.Pod, error) {
	if id := f.GetId(); id != "" {
		pod, err := s.Pods.Pod(id)
		if err != nil {
			return nil, ignoreNotFound(err)
		}
		return []*sandbox.Pod{pod}, nil
	}
	if uid := f.GetLabelSelector()[sandbox.UIDLabel]; uid != "" {
		return s.Pods.WithUID(uid), nil
	}
	return s.Pods.List(), nil
}

// podMatches looks at all of f but its id.
func podMatches(f *runtimeapi.PodSandboxFilter, p *runtimeapi.PodSandbox) bool {
	if f.GetState() != nil && f.GetState().GetState() != p.GetState() {
		return false
	}
	return labelsMatch(f.GetLabelSelector(), p.GetLabels())
}

// containersMatching returns the containers that meet all conditions of f.
func (s *Server) containersMatching(f *runtimeapi.ContainerFilter) ([]*runtimeapi.Container, error) {
	candidates, err := s.containerCandidates(f)
	if err != nil {
		return nil, ignoreNotFound(err)
	}
	var matching []*runtimeapi.Container
	for _, ctr := range candidates {
		if c := ctr.Summary(); containerMatches(f, c) {
			matching = append(matching, c)
		}
	}
	return matching, nil
}

// containerCandidates narrows the containers down by their own id and their
// pod's. Labels are not narrowed by the index of pods: a container's labels are
// its own.
func (s *Server) containerCandidates(f *runtimeapi.ContainerFilter) ([]*sandbox.Container, error) {
	var pod *sandbox.Pod
	if id := f.GetPodSandboxId(); id != "" {
		var err error
		if pod, err = s.Pods.Pod(id); err != nil {
			return nil, err
		}
	}
	if id := f.GetId(); id != "" {
		ctr, err := s.Pods.Container(id)
		if err != nil {
			return nil, err
		}
		if pod != nil && ctr.Pod() != pod {
			return nil, nil
		}
		return []*sandbox.Container{ctr}, nil
	}
	if pod != nil {
		return pod.Containers(), nil
	}
	return s.Pods.Containers(), nil
}

// containerMatches looks at all of f but its ids.
func containerMatches(f *runtimeapi.ContainerFilter, c *runtimeapi.Container) bool {
	if f.GetState() != nil && f.GetState().GetState() != c.GetState() {
		return false
	}
	return labelsMatch(f.GetLabelSelector(), c.GetLabels())
}

// labelsMatch reports whether labels has every label of selector.
func labelsMatch(selector, labels map[string]string) bool {
	for key, want := range selector {
		if have, ok := labels[key]; !ok || have != want {
			return false
		}
	}
	return true
}
