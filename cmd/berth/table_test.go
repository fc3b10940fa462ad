package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var noon = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

func ago(d time.Duration) int64 { return noon.Add(-d).UnixNano() }

func hexID(c string) string { return strings.Repeat(c, 64) }

// node is what the tests below find on the node: a pod made by hand that runs,
// one that has ended, one without a container, and one of a kubelet with two.
func node() []psLine {
	byHand := map[string]string{runLabel: "true"}
	web := &runtimeapi.PodSandbox{
		Id: hexID("a1"), CreatedAt: ago(time.Minute), Labels: byHand,
		Metadata:    &runtimeapi.PodSandboxMetadata{Name: "web", Namespace: podNamespace, Uid: "u1"},
		Annotations: map[string]string{portsAnnotation: "8080:80/tcp"},
	}
	job := &runtimeapi.PodSandbox{
		Id: hexID("b2"), CreatedAt: ago(3 * time.Hour), Labels: byHand,
		Metadata: &runtimeapi.PodSandboxMetadata{Name: "job-x7", Namespace: podNamespace, Uid: "u2"},
	}
	half := &runtimeapi.PodSandbox{
		Id: hexID("c3"), CreatedAt: ago(50 * time.Hour), Labels: byHand,
		Metadata: &runtimeapi.PodSandboxMetadata{Name: "half", Namespace: podNamespace, Uid: "u3"},
	}
	dns := &runtimeapi.PodSandbox{
		Id:       hexID("d4"),
		Metadata: &runtimeapi.PodSandboxMetadata{Name: "coredns-1", Namespace: "kube-system", Uid: "u4"},
	}
	container := func(id, pod, name, image string, state runtimeapi.ContainerState, created int64) *runtimeapi.Container {
		return &runtimeapi.Container{
			Id: hexID(id), PodSandboxId: pod, Metadata: &runtimeapi.ContainerMetadata{Name: name},
			Image: &runtimeapi.ImageSpec{Image: image}, State: state, CreatedAt: created,
		}
	}
	return []psLine{
		{entry: entry{web, container("e5", web.Id, "web", "docker.io/library/busybox:1.36", runtimeapi.ContainerState_CONTAINER_RUNNING, ago(59*time.Second))}, ip: "10.88.0.2"},
		{entry: entry{job, container("f6", job.Id, "job-x7", "sha256:"+hexID("90"), runtimeapi.ContainerState_CONTAINER_EXITED, ago(3*time.Hour))}, exitCode: 137},
		{entry: entry{half, nil}, ip: "10.88.0.4"},
		{entry: entry{dns, container("07", dns.Id, "coredns", "coredns:1", runtimeapi.ContainerState_CONTAINER_RUNNING, ago(time.Hour))}, ip: "10.244.0.3"},
		{entry: entry{dns, container("18", dns.Id, "sidecar", "sidecar:1", runtimeapi.ContainerState_CONTAINER_CREATED, 0)}, ip: "10.244.0.3"},
	}
}

// inEachForm compares what write writes with the golden files of its table, its
// ids and its JSON.
func inEachForm(t *testing.T, name string, write func(w io.Writer, o listOptions) error) {
	t.Helper()
	for file, o := range map[string]listOptions{
		name + ".txt":          {format: formatTable},
		name + "-no-trunc.txt": {format: formatTable, whole: true},
		name + "-q.txt":        {format: formatTable, quiet: true},
		name + ".json":         {format: formatJSON},
	} {
		var out strings.Builder
		if err := write(&out, o); err != nil {
			t.Errorf("%s: %v", file, err)
		}
		golden(t, file, out.String())
	}
}

func TestPsTable(t *testing.T) {
	inEachForm(t, "ps", func(w io.Writer, o listOptions) error { return writePs(w, noon, node(), o) })
	inEachForm(t, "ps-none", func(w io.Writer, o listOptions) error { return writePs(w, noon, nil, o) })
}

func TestImagesTable(t *testing.T) {
	built, pulled := noon.Add(-72*time.Hour), noon.Add(-time.Minute)
	images := []imageLine{
		{&runtimeapi.Image{Id: "sha256:" + hexID("1a"), Size: 1_997_000, RepoTags: []string{"docker.io/library/busybox:1.36", "docker.io/library/busybox:latest"}}, &built, &pulled},
		{&runtimeapi.Image{Id: "sha256:" + hexID("2b"), Size: 71 << 20, RepoTags: []string{"localhost:5000/team/web:v1"}}, nil, &pulled},
		{&runtimeapi.Image{Id: "sha256:" + hexID("3c"), Size: 512, RepoDigests: []string{"localhost:5000/web@sha256:" + hexID("4d")}}, nil, nil},
		{&runtimeapi.Image{Id: "sha256:" + hexID("5e"), Size: 3 << 30}, nil, nil},
	}
	inEachForm(t, "images", func(w io.Writer, o listOptions) error { return writeImages(w, noon, images, o) })
}

// A table fits into the window: the widest texts lose their middle, ids and
// short ones nothing.
func TestTableIsCutToTheWindow(t *testing.T) {
	for _, width := range []int{150, 110, 10} {
		var out strings.Builder
		table := &table{w: &out, width: width}
		table.row("NAME", "ID", "IMAGE")
		table.row("kube-system/coredns-7db6d8ff4d-x2x7k/coredns", "070707070707", "registry.example.com/a/rather/long/path/of/an/image:v1.2.3-debian-12")
		table.row("web", "e5e5e5e5e5e5", "büsybox")
		if err := table.flush(); err != nil {
			t.Fatal(err)
		}
		golden(t, fmt.Sprintf("table-%d.txt", width), out.String())
	}
}

func TestStatusTable(t *testing.T) {
	s := &nodeStatus{
		version: &runtimeapi.VersionResponse{RuntimeVersion: "0.1.0"},
		status: &runtimeapi.StatusResponse{
			Status: &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{
				{Type: runtimeapi.RuntimeReady, Status: true},
				{Type: runtimeapi.NetworkReady, Reason: "NetworkNotReady", Message: "no network configuration in /etc/cni/net.d"},
			}},
			RuntimeHandlers: []*runtimeapi.RuntimeHandler{{Name: ""}, {Name: "crun"}, {Name: "runc"}},
			Info:            map[string]string{"limits": `{"nofile":20000}`, "config": `{"container":{"nofile":1048576}}`},
		},
		images: make([]*runtimeapi.Image, 2),
		fs: &runtimeapi.ImageFsInfoResponse{ImageFilesystems: []*runtimeapi.FilesystemUsage{{
			FsId: &runtimeapi.FilesystemIdentifier{Mountpoint: "/var/lib/berth"}, UsedBytes: &runtimeapi.UInt64Value{Value: 71 << 20},
		}}},
	}
	for _, l := range node() {
		s.pods = append(s.pods, l.pod)
		if l.container != nil {
			s.containers = append(s.containers, l.container)
		}
	}
	var text, json strings.Builder
	if err := errors.Join(s.report().write(&text), writeJSON(&json, s.report())); err != nil {
		t.Fatal(err)
	}
	golden(t, "status.txt", text.String())
	golden(t, "status.json", json.String())
}

func TestSize(t *testing.T) {
	for _, test := range []struct {
		bytes uint64
		want  string
	}{
		{0, "0 B"}, {1023, "1023 B"}, {1024, "1.0 KiB"}, {10 << 10, "10.0 KiB"}, {100 << 10, "100 KiB"}, {1023 << 10, "1.0 MiB"},
		{1<<20 - 1, "1.0 MiB"}, {71 << 20, "71.0 MiB"}, {3 << 30, "3.0 GiB"}, {1<<64 - 1, "16.0 EiB"},
	} {
		if got := size(test.bytes); got != test.want {
			t.Errorf("size(%d) = %q, want %q", test.bytes, got, test.want)
		}
	}
}

func TestAge(t *testing.T) {
	for _, test := range []struct {
		of   time.Duration
		want string
	}{
		{0, "0s"}, {-time.Minute, "0s"}, {119 * time.Second, "119s"}, {2 * time.Minute, "2m"}, {119 * time.Minute, "119m"},
		{2 * time.Hour, "2h"}, {47 * time.Hour, "47h"}, {48 * time.Hour, "2d"}, {1000 * 24 * time.Hour, "1000d"},
	} {
		if got := age(noon, ago(test.of)); got != test.want {
			t.Errorf("age of %v = %q, want %q", test.of, got, test.want)
		}
	}
	if got := age(noon, 0); got != "-" {
		t.Errorf("age of what never began = %q", got)
	}
}
