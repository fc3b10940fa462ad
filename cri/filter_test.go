package cri

import (
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestPodMatches(t *testing.T) {
	ready := &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY}
	notReady := &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_NOTREADY}
	pod := &runtimeapi.PodSandbox{
		State:  runtimeapi.PodSandboxState_SANDBOX_READY,
		Labels: map[string]string{"app": "web", "empty": ""},
	}
	for _, test := range []struct {
		name   string
		filter *runtimeapi.PodSandboxFilter
		want   bool
	}{
		{"no filter", nil, true},
		{"empty filter", &runtimeapi.PodSandboxFilter{}, true},
		{"state", &runtimeapi.PodSandboxFilter{State: ready}, true},
		{"other state", &runtimeapi.PodSandboxFilter{State: notReady}, false},
		{"label", &runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"app": "web"}}, true},
		{"other value", &runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"app": "db"}}, false},
		{"one label of two", &runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"app": "web", "tier": "x"}}, false},
		{"empty value is there", &runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"empty": ""}}, true},
		{"empty value is not any", &runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"missing": ""}}, false},
		{"state but not label", &runtimeapi.PodSandboxFilter{State: ready, LabelSelector: map[string]string{"app": "db"}}, false},
		{"label but not state", &runtimeapi.PodSandboxFilter{State: notReady, LabelSelector: map[string]string{"app": "web"}}, false},
	} {
		if got := podMatches(test.filter, pod); got != test.want {
			t.Errorf("%s: matches = %v, want %v", test.name, got, test.want)
		}
	}
}

func TestContainerMatches(t *testing.T) {
	// The zero of the enum is a state too: only a nil filter means any.
	created := &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_CREATED}
	exited := &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_EXITED}
	container := &runtimeapi.Container{State: runtimeapi.ContainerState_CONTAINER_EXITED, Labels: map[string]string{"app": "web"}}
	for _, test := range []struct {
		name   string
		filter *runtimeapi.ContainerFilter
		want   bool
	}{
		{"no filter", nil, true},
		{"state", &runtimeapi.ContainerFilter{State: exited}, true},
		{"zero state", &runtimeapi.ContainerFilter{State: created}, false},
		{"state and label", &runtimeapi.ContainerFilter{State: exited, LabelSelector: map[string]string{"app": "web"}}, true},
		{"state but not label", &runtimeapi.ContainerFilter{State: exited, LabelSelector: map[string]string{"app": "db"}}, false},
	} {
		if got := containerMatches(test.filter, container); got != test.want {
			t.Errorf("%s: matches = %v, want %v", test.name, got, test.want)
		}
	}
}
