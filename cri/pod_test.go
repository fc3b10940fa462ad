package cri

import (
	"slices"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/cri/admin"
	"berth/sandbox"
	"berth/test/expect"
)

func TestPodLife(t *testing.T) {
	n := newNode(t)
	config := podConfig("web")
	config.Annotations = map[string]string{"note": "kept"}
	id := n.runPod(t, config)
	if again := n.runPod(t, config); again != id {
		t.Errorf("a retry made another pod, %s, not %s", again, id)
	}
	s := must[*runtimeapi.PodSandboxStatusResponse](t)(n.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id, Verbose: true}))
	pod := s.GetStatus()
	if pod.GetId() != id || !proto.Equal(pod.GetMetadata(), config.GetMetadata()) || pod.GetCreatedAt() == 0 ||
		pod.GetState() != runtimeapi.PodSandboxState_SANDBOX_READY || pod.GetAnnotations()["note"] != "kept" || pod.GetLabels()["app"] != "web" {
		t.Errorf("status: %v", pod)
	}
	if s.GetTimestamp() != 0 || len(s.GetInfo()) == 0 {
		t.Errorf("timestamp %d, info %v", s.GetTimestamp(), s.GetInfo())
	}
	for range 2 {
		must[*runtimeapi.StopPodSandboxResponse](t)(n.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: id}))
	}
	s = must[*runtimeapi.PodSandboxStatusResponse](t)(n.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id}))
	if s.GetStatus().GetState() != runtimeapi.PodSandboxState_SANDBOX_NOTREADY || s.GetInfo() != nil {
		t.Errorf("stopped: %v", s)
	}
	for range 2 {
		must[*runtimeapi.RemovePodSandboxResponse](t)(n.RemovePodSandbox(t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id}))
	}
	_, err := n.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id})
	expect.Code(t, "status of a removed pod", err, codes.NotFound)
}

// Only the admin service lets a pod use the built-in network, whatever the
// pod's author writes into it.
func TestBuiltinNetworkIsForTheAdminService(t *testing.T) {
	n := newNode(t)
	config := podConfig("sly")
	config.Annotations = map[string]string{"berth/network": "builtin", "berth/builtin": "true"}
	config.Labels["berth/run"] = "true"
	byCRI := n.runPod(t, config)
	byAdmin := must[string](t)(admin.RunPod(t.Context(), n.conn, &runtimeapi.RunPodSandboxRequest{Config: podConfig("hand")}))
	n.network.mu.Lock()
	defer n.network.mu.Unlock()
	if n.network.builtin[byCRI] {
		t.Error("a pod got the built-in network through CRI")
	}
	if !n.network.builtin[byAdmin] {
		t.Error("a pod of the admin service may not use the built-in network")
	}
}

func TestListPodSandbox(t *testing.T) {
	n := newNode(t)
	a, b := n.runPod(t, podConfig("a")), n.runPod(t, podConfig("b"))
	must[*runtimeapi.StopPodSandboxResponse](t)(n.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: b}))
	ready := &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY}
	type filter = runtimeapi.PodSandboxFilter
	for _, test := range []struct {
		name   string
		filter *filter
		want   []string
	}{
		{"all, newest first", nil, []string{b, a}},
		{"id", &filter{Id: a}, []string{a}},
		{"prefix", &filter{Id: a[:20]}, []string{a}},
		{"unknown id", &filter{Id: "0123"}, nil},
		{"state", &filter{State: ready}, []string{a}},
		{"id and state", &filter{Id: b, State: ready}, nil},
		{"uid", &filter{LabelSelector: map[string]string{sandbox.UIDLabel: "uid-b"}}, []string{b}},
		{"uid and another label", &filter{LabelSelector: map[string]string{sandbox.UIDLabel: "uid-b", "app": "a"}}, nil},
		{"uid and state", &filter{LabelSelector: map[string]string{sandbox.UIDLabel: "uid-b"}, State: ready}, nil},
		{"unknown uid", &filter{LabelSelector: map[string]string{sandbox.UIDLabel: "uid-c"}}, nil},
		{"label", &filter{LabelSelector: map[string]string{"app": "a"}}, []string{a}},
	} {
		resp := must[*runtimeapi.ListPodSandboxResponse](t)(n.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{Filter: test.filter}))
		var got []string
		for _, p := range resp.GetItems() {
			got = append(got, p.GetId())
			if p.GetMetadata() == nil {
				t.Errorf("%s: a pod without metadata: the kubelet panics", test.name)
			}
		}
		if !slices.Equal(got, test.want) {
			t.Errorf("%s: listed %v, want %v", test.name, got, test.want)
		}
	}
}
