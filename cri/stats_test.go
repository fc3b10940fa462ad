package cri

import (
	"errors"
	"slices"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/sandbox"
	"berth/test/expect"
)

// The kubelet asks for the stats of the pod "" to learn whether the call is there:
// any code but Unimplemented says that it is.
func TestStatsOfAnUnknownID(t *testing.T) {
	n := newNode(t)
	pod, ctr := n.startContainer(t, "web")
	for id, code := range map[string]codes.Code{"": codes.InvalidArgument, "0123": codes.NotFound, ctr[:20]: codes.NotFound, pod: codes.NotFound} {
		_, err := n.ContainerStats(t.Context(), &runtimeapi.ContainerStatsRequest{ContainerId: id})
		expect.Code(t, "container "+id, err, code)
	}
	for id, code := range map[string]codes.Code{"": codes.InvalidArgument, "0123": codes.NotFound, pod[:20]: codes.NotFound, ctr: codes.NotFound} {
		_, err := n.PodSandboxStats(t.Context(), &runtimeapi.PodSandboxStatsRequest{PodSandboxId: id})
		expect.Code(t, "pod "+id, err, code)
	}
}

func TestStatsOfOne(t *testing.T) {
	n := newNode(t)
	pod, ctr := n.startContainer(t, "web")
	c := must[*runtimeapi.ContainerStatsResponse](t)(n.ContainerStats(t.Context(), &runtimeapi.ContainerStatsRequest{ContainerId: ctr})).GetStats()
	status := must[*runtimeapi.ContainerStatusResponse](t)(n.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: ctr})).GetStatus()
	if a := c.GetAttributes(); a.GetId() != ctr || !proto.Equal(a.GetMetadata(), status.GetMetadata()) || a.GetLabels()["part"] != "main" {
		t.Errorf("attributes %v", a)
	}
	if c.GetCpu().GetUsageCoreNanoSeconds().GetValue() != 1e9 || c.GetCpu().GetTimestamp() == 0 ||
		c.GetWritableLayer().GetTimestamp() == 0 || c.GetWritableLayer().GetFsId().GetMountpoint() != n.server.Images.Dir {
		t.Errorf("stats %v", c)
	}
	p := must[*runtimeapi.PodSandboxStatsResponse](t)(n.PodSandboxStats(t.Context(), &runtimeapi.PodSandboxStatsRequest{PodSandboxId: pod})).GetStats()
	if p.GetAttributes().GetId() != pod || p.GetAttributes().GetMetadata().GetName() != "web" || p.GetLinux().GetContainers()[0].GetAttributes().GetId() != ctr {
		t.Errorf("stats %v", p)
	}
	n.runtime.broken = map[string]error{ctr: errors.New("unreadable"), pod: errors.New("unreadable")}
	_, err := n.ContainerStats(t.Context(), &runtimeapi.ContainerStatsRequest{ContainerId: ctr})
	expect.Code(t, "a broken container", err, codes.Unknown, "unreadable")
	_, err = n.PodSandboxStats(t.Context(), &runtimeapi.PodSandboxStatsRequest{PodSandboxId: pod})
	expect.Code(t, "a broken pod", err, codes.Unknown, "unreadable")
}

func TestListStats(t *testing.T) {
	n := newNode(t)
	podA, ctrA := n.startContainer(t, "a")
	podB, ctrB := n.startContainer(t, "b")
	podC, ctrC := n.startContainer(t, "c")
	ref, _ := n.pullBusybox(t)
	n.createContainer(t, podA, containerConfig("idle", ref)) // is never started
	n.runtime.broken = map[string]error{ctrC: errors.New("unreadable")}

	type containers = runtimeapi.ContainerStatsFilter
	for _, test := range []struct {
		name   string
		filter *containers
		want   []string
	}{
		{"all that run and can be read, newest first", nil, []string{ctrB, ctrA}},
		{"id", &containers{Id: ctrA}, []string{ctrA}},
		{"prefix, as crictl has it", &containers{Id: ctrA[:20]}, []string{ctrA}},
		{"unknown id", &containers{Id: "0123"}, nil},
		{"pod", &containers{PodSandboxId: podB}, []string{ctrB}},
		{"unknown pod", &containers{PodSandboxId: "0123"}, nil},
		{"id of another pod", &containers{Id: ctrA, PodSandboxId: podB}, nil},
		{"label", &containers{LabelSelector: map[string]string{"part": "main"}}, []string{ctrB, ctrA}},
		{"another label", &containers{LabelSelector: map[string]string{"part": "side"}}, nil},
		{"id and another label", &containers{Id: ctrA, LabelSelector: map[string]string{"part": "side"}}, nil},
		{"one that cannot be read", &containers{Id: ctrC}, nil},
	} {
		resp := must[*runtimeapi.ListContainerStatsResponse](t)(n.ListContainerStats(t.Context(), &runtimeapi.ListContainerStatsRequest{Filter: test.filter}))
		var got []string
		for _, c := range resp.GetStats() {
			got = append(got, c.GetAttributes().GetId())
			if c.GetAttributes().GetMetadata() == nil || c.GetCpu().GetTimestamp() == 0 {
				t.Errorf("%s: %v", test.name, c)
			}
		}
		if !slices.Equal(got, test.want) {
			t.Errorf("containers, %s: listed %v, want %v", test.name, got, test.want)
		}
	}

	must[*runtimeapi.StopPodSandboxResponse](t)(n.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: podC}))
	type pods = runtimeapi.PodSandboxStatsFilter
	for _, test := range []struct {
		name   string
		filter *pods
		want   []string
	}{
		{"all that are ready, newest first", nil, []string{podB, podA}},
		{"id", &pods{Id: podA}, []string{podA}},
		{"unknown id", &pods{Id: "0123"}, nil},
		{"stopped", &pods{Id: podC}, nil},
		{"uid", &pods{LabelSelector: map[string]string{sandbox.UIDLabel: "uid-b"}}, []string{podB}},
		{"uid and another label", &pods{LabelSelector: map[string]string{sandbox.UIDLabel: "uid-b", "app": "a"}}, nil},
		{"id and another's label", &pods{Id: podA, LabelSelector: map[string]string{"app": "b"}}, nil},
	} {
		resp := must[*runtimeapi.ListPodSandboxStatsResponse](t)(n.ListPodSandboxStats(t.Context(), &runtimeapi.ListPodSandboxStatsRequest{Filter: test.filter}))
		var got []string
		for _, p := range resp.GetStats() {
			got = append(got, p.GetAttributes().GetId())
			if p.GetAttributes().GetMetadata() == nil || p.GetLinux() == nil {
				t.Errorf("%s: %v", test.name, p)
			}
		}
		if !slices.Equal(got, test.want) {
			t.Errorf("pods, %s: listed %v, want %v", test.name, got, test.want)
		}
	}
}
