//go:build node

package node

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// manifests are the pods of the story, all at once.
var manifests = []string{"probes", "liveness", "crash", "init", "stop", "lines", "talk", "greedy", "oom", "job", "web", "host", "restricted", "driver", "userns"}

// steady are the pods that run on when nobody touches them.
var steady = []string{"probes", "liveness", "init", "stop", "talk", "greedy", "web", "host", "restricted", "driver", "userns"}

// TestKubelet is the first hour of a node: pods come, live, outlast the node's
// programs, and go.
func TestKubelet(t *testing.T) {
	forEachSetup(t, func(t *testing.T, n *node) {
		for _, name := range manifests {
			n.apply(t, name)
		}
		for _, name := range steady { // or there is nothing to tell
			n.await(t, 2*time.Minute, "is ready", name, pod.ready)
		}
		for _, chapter := range []struct {
			name string
			test func(t *testing.T, n *node)
		}{
			{"probes", testProbes},
			{"liveness", testLiveness},
			{"job", testJob},
			{"init containers", testInitContainers},
			{"out of memory", testOutOfMemory},
			{"web server", testWebServer},
			{"host network", testHostNetwork},
			{"restricted pod", testRestricted},
			{"privileged pod", testDriver},
			{"user namespace", testUserNamespace},
			{"exec, attach and port-forward", testStreaming},
			{"rotation", testRotation},
			{"back-off", testBackOff},
			{"summary", testSummary},
			{"eviction", testEviction},
			{"metrics", testMetrics},
			{"deaths", testDeaths},
			{"graceful stop", testGracefulStop},
			{"nothing is left", testNothingIsLeft},
		} {
			t.Run(chapter.name, func(t *testing.T) { chapter.test(t, n) })
		}
	})
}

func testProbes(t *testing.T, n *node) {
	for _, c := range []struct{ name, upset, calm string }{
		{"exec", "rm /tmp/ready", "touch /tmp/ready"},
		{"http", "mv /www/index.html /www/away", "mv /www/away /www/index.html"},
	} {
		runIn(t, "probes", c.name, c.upset)
		p := n.await(t, patience, c.name+" is not ready", "probes", func(p pod) bool { return !p.container(c.name).Ready })
		if p.ready() || !p.container("tcp").Ready {
			t.Errorf("with %s not ready: %+v", c.name, p.Status)
		}
		runIn(t, "probes", c.name, c.calm)
		n.await(t, patience, "is ready again", "probes", pod.ready)
	}
	// Without its server the tcp container ends.
	runIn(t, "probes", "tcp", "killall httpd")
	p := n.await(t, patience, "has tcp restarted and ready", "probes", func(p pod) bool {
		return p.container("tcp").RestartCount == 1 && p.ready()
	})
	if last := p.container("tcp").LastState.Terminated; last == nil || last.ExitCode != 9 {
		t.Errorf("tcp ended as %+v", last)
	}
	for _, name := range []string{"exec", "http"} {
		if c := p.container(name); c.RestartCount != 0 {
			t.Errorf("%s was restarted: %+v", name, c)
		}
	}
}

func testLiveness(t *testing.T, n *node) {
	p := n.await(t, time.Minute, "is restarted", "liveness", func(p pod) bool {
		return p.container("main").RestartCount > 0 && p.container("main").State.Running != nil
	})
	c := p.container("main")
	last := c.LastState.Terminated
	if c.RestartCount != 1 || last == nil || last.ExitCode != 7 || last.Reason != "Error" || last.ContainerID == c.ContainerID {
		t.Errorf("after the restart: %+v", c)
	}
	if lives := n.told("liveness", "lives"); lives != "life\nlife\n" {
		t.Errorf("lives: %q", lives)
	}
	if log := containerLog(t, "liveness", "main", "?previous=true"); log != "told to end\n" {
		t.Errorf("the log of its first life: %q", log)
	}
}

func testJob(t *testing.T, n *node) {
	for _, want := range []struct {
		name, reason, message string
		code                  int
	}{
		{"good", "Completed", "done", 0},
		{"bad", "Error", "these are my last words\n", 5},
		{"wrong", "StartError", "/bin/frobnicate", 128},
	} {
		end := n.ended(t, "job", want.name).State.Terminated
		if end.Reason != want.reason || end.ExitCode != want.code || !strings.Contains(end.Message, want.message) || end.FinishedAt.IsZero() {
			t.Errorf("%s: %+v, want %+v", want.name, end, want)
		}
	}
	n.await(t, patience, "has failed", "job", func(p pod) bool { return p.Status.Phase == "Failed" })
}

func testInitContainers(t *testing.T, n *node) {
	p := n.pod(t, "init")
	const story = "first begins\nfirst ends\nsidecar begins\nsecond begins\nsecond ends\nmain begins\n"
	if told := n.told("init", "story"); told != story {
		t.Errorf("they ran as %q", told)
	}
	for _, name := range []string{"first", "second"} {
		if end := p.container(name).State.Terminated; end == nil || end.Reason != "Completed" || p.container(name).RestartCount != 0 {
			t.Errorf("%s: %+v", name, p.container(name))
		}
	}
	if c := p.container("sidecar"); c.State.Running == nil || !c.Ready || c.RestartCount != 0 {
		t.Errorf("sidecar: %+v", c)
	}
}

// The kernel's verdict counts, also where it has killed a child only.
func testOutOfMemory(t *testing.T, n *node) {
	for name, code := range map[string]int{"main": 137, "child": 3} {
		if end := n.ended(t, "oom", name).State.Terminated; end.Reason != "OOMKilled" || end.ExitCode != code {
			t.Errorf("%s: %+v, want OOMKilled, %d", name, end, code)
		}
	}
}

// testBackOff waits for the third restart: 10 seconds after the first the kubelet
// tries again, and 20 seconds after that.
func testBackOff(t *testing.T, n *node) {
	p := n.await(t, 2*time.Minute, "is restarted three times", "crash", func(p pod) bool {
		c := p.container("main")
		return c.RestartCount >= 3 && c.State.Running == nil
	})
	c := p.container("main")
	end := cmp.Or(c.State.Terminated, c.LastState.Terminated) // the last one once the kubelet holds it back
	if c.RestartCount != 3 || end == nil || end.ExitCode != 3 || end.Reason != "Error" || end.Message != "no luck\n" {
		t.Errorf("after three restarts: %+v, %+v", c, end)
	}
	if log := containerLog(t, "crash", "main", ""); log != "this is life 4\n" {
		t.Errorf("the log of its last life: %q", log)
	}
	var starts []float64
	for _, field := range strings.Fields(n.told("crash", "starts")) {
		at, err := strconv.ParseFloat(field, 64)
		if err != nil {
			t.Fatal(err)
		}
		starts = append(starts, at)
	}
	if len(starts) != 4 || starts[2]-starts[1] < 10 || starts[3]-starts[2] < 20 {
		t.Errorf("it began at %v seconds", starts)
	}
	// The kubelet keeps one dead container of each.
	if all := n.containersOf(t, p.Metadata.UID); len(all) > 2 {
		t.Errorf("the runtime has %d containers of it: %v", len(all), all)
	}
	n.stopped(t, n.delete(t, "crash"))
}

func testGracefulStop(t *testing.T, n *node) {
	n.stopped(t, n.delete(t, "stop"), n.delete(t, "init"))
	if told := n.told("stop", "story"); told != "preStop\npreStop ends\nTERM\nend\n" {
		t.Errorf("it was stopped as %q", told)
	}
	told := strings.Split(strings.TrimSpace(n.told("init", "story")), "\n")
	if end := told[max(0, len(told)-2):]; !slices.Equal(end, []string{"main ends", "sidecar ends"}) {
		t.Errorf("the sidecar was not last: %q", told)
	}
}

// containerLog is what `kubectl logs` would show.
func containerLog(t *testing.T, pod, container, query string) string {
	t.Helper()
	return string(get(t, "/containerLogs/default/"+pod+"-node/"+container+query))
}
