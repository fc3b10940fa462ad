//go:build node

package node

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// pod is what the tests read of a pod of the Kubernetes API.
type pod struct {
	Metadata struct{ Name, Namespace, UID string }
	Status   struct {
		Phase, PodIP          string
		Conditions            []struct{ Type, Status string }
		InitContainerStatuses []container
		ContainerStatuses     []container
	}
}

type container struct {
	Name, ContainerID, ImageID string
	Ready                      bool
	RestartCount               int
	State, LastState           state
}

// state has one field set at most.
type state struct {
	Waiting    *struct{ Reason, Message string }
	Running    *struct{ StartedAt time.Time }
	Terminated *struct {
		ExitCode              int
		Reason, Message       string
		ContainerID           string
		StartedAt, FinishedAt time.Time
	}
}

// apply gives the kubelet a manifest of testdata, made for this node.
func (n *node) apply(t *testing.T, name string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name+".yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(n.shared(name), 0o777); err != nil {
		t.Fatal(err)
	}
	fill := strings.NewReplacer("@name@", name, "@image@", n.image, "@host@", n.shared(name))
	whole := filepath.Join(n.dir, name+".yaml")
	write(t, whole, fill.Replace(string(text)))
	if err := os.Rename(whole, filepath.Join(n.manifests(), name+".yaml")); err != nil {
		t.Fatal(err)
	}
}

// delete takes the manifest away again. It returns the UID of the pod, which the
// kubelet does not list any more while it stops it.
func (n *node) delete(t *testing.T, name string) (uid string) {
	t.Helper()
	uid = n.pod(t, name).Metadata.UID
	if err := os.Remove(filepath.Join(n.manifests(), name+".yaml")); err != nil {
		t.Fatal(err)
	}
	return uid
}

// shared is the directory of the test that a pod has as /host.
func (n *node) shared(name string) string { return filepath.Join(n.host, name) }

// told is what a pod has written to a file of its shared directory.
func (n *node) told(name, file string) string {
	text, _ := os.ReadFile(filepath.Join(n.shared(name), file)) // not there yet: nothing
	return string(text)
}

// pods are the kubelet's pods.
func pods(t *testing.T) []pod {
	t.Helper()
	return getJSON[struct{ Items []pod }](t, "/pods").Items
}

// pod is the pod of a manifest; without a phase while the kubelet has none.
func (n *node) pod(t *testing.T, name string) pod {
	t.Helper()
	for _, p := range pods(t) {
		if p.Metadata.Name == name+"-node" { // the kubelet adds its name
			return p
		}
	}
	return pod{}
}

// container is one of the pod's, an init container too; empty while the kubelet
// has none of that name.
func (p pod) container(name string) container {
	for _, c := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
		if c.Name == name {
			return c
		}
	}
	return container{}
}

func (p pod) ready() bool {
	for _, c := range p.Status.Conditions {
		if c.Type == "Ready" {
			return c.Status == "True"
		}
	}
	return false
}

// await asks for the pod until it is as it should be.
func (n *node) await(t *testing.T, limit time.Duration, what, name string, is func(p pod) bool) (p pod) {
	t.Helper()
	met := false
	defer func() {
		if !met {
			seen, _ := json.Marshal(p)
			t.Logf("pod %s, when last seen: %s", name, seen)
		}
	}()
	within(t, limit, name+" "+what, func() bool {
		p = n.pod(t, name)
		met = is(p)
		return met
	})
	return p
}

// ended waits until a container has ended for good.
func (n *node) ended(t *testing.T, name, ctr string) container {
	t.Helper()
	return n.await(t, time.Minute, "has ended", name, func(p pod) bool {
		return p.container(ctr).State.Terminated != nil
	}).container(ctr)
}

// stopped waits until nothing of the pods runs.
func (n *node) stopped(t *testing.T, uids ...string) {
	t.Helper()
	within(t, time.Minute, "the pods are stopped", func() bool {
		for _, uid := range uids {
			for _, c := range n.containersOf(t, uid) {
				if c.GetState() == runtimeapi.ContainerState_CONTAINER_RUNNING {
					return false
				}
			}
		}
		return true
	})
}

// containersOf are what the runtime has of a pod, ended ones too.
func (n *node) containersOf(t *testing.T, uid string) []*runtimeapi.Container {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	resp, err := n.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{
		LabelSelector: map[string]string{"io.kubernetes.pod.uid": uid},
	}})
	if err != nil {
		t.Fatal(err)
	}
	return resp.GetContainers()
}
