//go:build node

package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"syscall"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// life tells whether a container is the same as before: it has the same process.
type life struct {
	id        string
	restarts  int
	startedAt time.Time
	pid       int
}

// lives are the running containers of the steady pods, as the kubelet and the
// runtime see them, and how many of each the runtime has at all.
func (n *node) lives(t *testing.T) map[string]life {
	t.Helper()
	all := map[string]life{}
	for _, name := range steady {
		p := n.pod(t, name)
		for _, c := range append(p.Status.InitContainerStatuses, p.Status.ContainerStatuses...) {
			if c.State.Running != nil {
				all[name+"/"+c.Name] = life{c.ContainerID, c.RestartCount, c.State.Running.StartedAt, n.pid(t, c.ContainerID)}
			}
		}
		all[name] = life{id: fmt.Sprint(len(n.containersOf(t, p.Metadata.UID)), " containers")}
	}
	return all
}

// pid is the first process of a container of the kubelet, which writes its id as
// berth://ID.
func (n *node) pid(t *testing.T, id string) int {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	_, err := fmt.Sscanf(id, "berth://%s", &id)
	if err != nil {
		t.Fatalf("container id %q: %v", id, err)
	}
	resp, err := n.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	var info struct{ Pid int }
	if err := json.Unmarshal([]byte(resp.GetInfo()["info"]), &info); err != nil {
		t.Fatal(err)
	}
	return info.Pid
}

// testDeaths kills the node's programs, one after the other and then all that
// may die. Nothing that runs is touched.
func testDeaths(t *testing.T, n *node) {
	address := n.pod(t, "web").Status.PodIP
	for _, death := range []struct {
		of   string
		kill func(t *testing.T)
	}{
		{"berthd", func(t *testing.T) {
			session, err := dial(t, "/exec/default/web-node/server?command=cat&input=1&output=1", "v4.channel.k8s.io")
			if err != nil {
				t.Fatal(err)
			}
			n.berthd.end(t, syscall.SIGKILL)
			if _, _, err := session.receive(); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("an exec outlives berthd")
			}
			failed := metric(t, "kubelet_runtime_operations_errors_total")
			within(t, time.Minute, "the kubelet has noticed", func() bool {
				return metric(t, "kubelet_runtime_operations_errors_total") > failed
			})
			if text := page(address); text != hello {
				t.Errorf("without berthd the web server says %q", text)
			}
			n.berthd.start(t)
			n.awaitBerthd(t)
		}},
		{"runner", n.killRunner},
		{"kubelet", func(t *testing.T) {
			n.kubelet.end(t, syscall.SIGKILL)
			n.kubelet.start(t)
			n.awaitKubelet(t)
		}},
		{"all three", func(t *testing.T) {
			n.kubelet.end(t, syscall.SIGKILL)
			n.killRunner(t)
			n.berthd.end(t, syscall.SIGKILL)
			if text := page(address); text != hello {
				t.Errorf("without all three the web server says %q", text)
			}
			n.kubelet.start(t)
			n.berthd.start(t)
			n.awaitBerthd(t)
			n.awaitKubelet(t)
		}},
	} {
		t.Run(death.of, func(t *testing.T) {
			before := n.lives(t)
			death.kill(t)
			var after map[string]life
			t.Cleanup(func() {
				if t.Failed() {
					t.Logf("before: %v\nafter: %v", before, after)
				}
			})
			same := func() bool {
				after = n.lives(t)
				return maps.Equal(before, after)
			}
			within(t, time.Minute, "the kubelet knows its pods again", same)
			n.relisted(t)
			if !same() {
				t.Error("something was started anew")
			}
			for _, name := range steady {
				n.await(t, time.Minute, "is ready", name, pod.ready)
			}
		})
	}
	t.Run("an exit meanwhile", func(t *testing.T) {
		c := n.pod(t, "web").container("peer")
		pid := n.pid(t, c.ContainerID)
		n.berthd.end(t, syscall.SIGKILL)
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		n.berthd.start(t)
		n.awaitBerthd(t)
		p := n.await(t, time.Minute, "has its peer again", "web", func(p pod) bool {
			return p.container("peer").RestartCount > c.RestartCount && p.ready()
		})
		again := p.container("peer")
		if last := again.LastState.Terminated; again.RestartCount != c.RestartCount+1 || last == nil || last.ExitCode != 137 || last.ContainerID != c.ContainerID {
			t.Errorf("after it was killed: %+v", again)
		}
	})
}

// killRunner returns when there is another one.
func (n *node) killRunner(t *testing.T) {
	t.Helper()
	runner := func() int {
		for pid, program := range children(t, n.keeper(t)) {
			if program == "berth-keeper" {
				return pid
			}
		}
		return 0
	}
	old := runner()
	if old == 0 {
		t.Fatal("the keeper has no runner")
	}
	if err := syscall.Kill(old, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	within(t, patience, "there is another runner", func() bool {
		pid := runner()
		return pid != 0 && pid != old
	})
}

// relisted waits until the kubelet has looked at all that the runtime has, three
// times.
func (n *node) relisted(t *testing.T) {
	t.Helper()
	const name = "kubelet_pleg_relist_duration_seconds_count"
	before := metric(t, name)
	within(t, time.Minute, "the kubelet relists", func() bool { return metric(t, name) >= before+3 })
}
