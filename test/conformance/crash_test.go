package conformance

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/test/expect"
	"berth/test/leak"
)

// counting writes numbers until it is told to end, then ends with 7.
const counting = `i=0; trap 'exit 7' TERM; while :; do i=$((i+1)); echo $i; done`

// wantCounting fails t unless the entries hold each number once and in order,
// as lines of their own.
func wantCounting(t *testing.T, entries []entry) {
	t.Helper()
	next, line := 1, ""
	for _, e := range entries {
		if line += e.content; e.tag == "P" {
			continue
		}
		if want := strconv.Itoa(next); line != want {
			t.Fatalf("the log has %q where %s should be", line, want)
		}
		next, line = next+1, ""
	}
}

// lines is how many lines the log has now.
func (n *node) lines(t *testing.T, path string) int {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Count(text, []byte{'\n'})
}

// Nothing running depends on berthd or on the runner.
func TestProcessesOfBerthMayDie(t *testing.T) {
	for name, kill := range map[string]func(t *testing.T, n *node){
		"berthd": func(t *testing.T, n *node) { n.killDaemon(t); n.startDaemon(t) },
		"runner": func(t *testing.T, n *node) { n.killRunner(t) },
		"both":   func(t *testing.T, n *node) { n.killRunner(t); n.killDaemon(t); n.startDaemon(t) },
	} {
		t.Run(name, func(t *testing.T) {
			forEachRuntime(t, func(t *testing.T, n *node) {
				pod, id := n.running(t, counting)
				log := n.container(t, id).GetLogPath()
				before := n.container(t, id)
				for range 3 {
					kill(t, n)
					was := n.lines(t, log)
					eventually(t, "the log goes on", func() bool { return n.lines(t, log) > was })
				}
				if c := n.container(t, id); c.GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING || c.GetStartedAt() != before.GetStartedAt() {
					t.Errorf("it was started anew: %v", c)
				}
				if p := n.pod(t, pod); p.GetState() != runtimeapi.PodSandboxState_SANDBOX_READY || p.GetNetwork().GetIp() == "" {
					t.Errorf("pod %v", p)
				}
				if out := n.exec(t, id, "echo", "here"); out != "here" {
					t.Errorf("exec says %q", out)
				}
				n.stopContainer(t, id, 20)
				if c := n.container(t, id); c.GetExitCode() != 7 {
					t.Errorf("exit code %d, reason %q", c.GetExitCode(), c.GetReason())
				}
				wantCounting(t, readLog(t, n.container(t, id).GetLogPath()))
			})
		})
	}
}

func (n *node) killRunner(t *testing.T) {
	t.Helper()
	old := n.runner(t)
	if err := syscall.Kill(old, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "there is another runner", func() bool {
		for _, pid := range n.processes(n.keeper(t)) {
			if pid != old && n.isRunner(pid) {
				return true
			}
		}
		return false
	})
}

// An exit while berthd is away is not lost.
func TestExitWithoutDaemon(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		_, id := n.running(t, `until [ -e /tmp/go ]; do sleep 0.05; done; sleep 0.5; echo last; exit 9`)
		log := n.container(t, id).GetLogPath()
		n.exec(t, id, "touch", "/tmp/go")
		n.killDaemon(t)
		eventually(t, "it writes its last line", func() bool { return n.lines(t, log) == 1 })
		n.startDaemon(t)
		if c := n.exited(t, id); c.GetExitCode() != 9 || c.GetReason() != "Error" {
			t.Errorf("exit code %d, reason %q", c.GetExitCode(), c.GetReason())
		}
	})
}

// Whether a container ends just before, just when or just after berthd dies: its
// code and its last line are there.
func TestExitsAroundACrash(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		n.pull(t, n.busybox)
		pod := n.runPod(t, podConfig(t, "web"))
		var ids []string
		for i := range 10 {
			script := fmt.Sprintf(`until [ -e /dev/shm/go ]; do sleep 0.01; done; sleep 0.%02d; echo last; exit %d`, 2*i, 10+i)
			ids = append(ids, n.startContainer(t, pod, n.shell(fmt.Sprint("c", i), script)))
		}
		trigger := n.startContainer(t, pod, n.shell("trigger", `: >/dev/shm/go; sleep 0.1; echo now; sleep 4714`))
		log := n.container(t, trigger).GetLogPath()
		eventually(t, "half of them end", func() bool { return n.lines(t, log) > 0 })
		n.killDaemon(t)
		n.startDaemon(t)
		for i, id := range ids {
			if c := n.exited(t, id); int(c.GetExitCode()) != 10+i || c.GetReason() != "Error" {
				t.Errorf("container %d: exit code %d, reason %q", i, c.GetExitCode(), c.GetReason())
			}
			if out := n.output(t, id, "stdout"); out != "last\n" {
				t.Errorf("container %d wrote %q", i, out)
			}
		}
	})
}

// A kubelet whose runtime died in the middle of a call calls again.
func TestCallsAreRepeatedAfterACrash(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		n.pull(t, n.busybox)
		config := podConfig(t, "web")
		for range 5 {
			begun := make(chan struct{})
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				close(begun)
				n.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: config})
			}()
			<-begun
			n.killDaemon(t)
			n.startDaemon(t)
			<-ended
		}
		pod := n.runPod(t, config)
		if again := n.runPod(t, config); again != pod {
			t.Errorf("two pods of one identity: %s and %s", pod, again)
		}
		if pods := n.pods(t, nil); len(pods) != 1 {
			t.Errorf("listed %v", pods)
		}
		if out := n.says(t, pod, "main", "echo works", nil); out != "works" {
			t.Errorf("said %q", out)
		}
	})
}

// A call that berthd dies under ends with an error at once, and what it had
// begun is taken back or goes on.
func TestCallsCutByACrash(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		_, id := n.running(t, `trap 'echo asked' TERM; echo ready; while :; do sleep 0.1; done`)
		n.awaitReady(t, id)

		n.cut(t, "an exec", func() error {
			_, err := n.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"sleep", "4714"}})
			return err
		}, func() bool { return len(processesNamed("sleep 4714")) == 1 })
		eventually(t, "the exec's process is gone", func() bool { return len(processesNamed("sleep 4714")) == 0 })

		n.cut(t, "a stop", func() error {
			_, err := n.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 1000})
			return err
		}, func() bool { return strings.HasSuffix(n.output(t, id, "stdout"), "asked\n") })
		if c := n.container(t, id); c.GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING {
			t.Errorf("a stop whose grace is not over has made the container %v", c.GetState())
		}
		n.stopContainer(t, id, 1)
		if c := n.container(t, id); c.GetExitCode() != 137 {
			t.Errorf("exit code %d, want 137", c.GetExitCode())
		}
	})
}

func TestPullCutByACrash(t *testing.T) {
	n := start(t, "runc")
	asked, never := make(chan struct{}, 10), make(chan struct{})
	t.Cleanup(func() { close(never) })
	n.registry.Misbehave(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/blobs/") {
			return false
		}
		asked <- struct{}{}
		select {
		case <-never:
		case <-r.Context().Done():
		}
		return true
	})
	n.cut(t, "a pull", func() error {
		_, err := n.images.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: n.busybox}})
		return err
	}, func() bool { return len(asked) > 0 })
	n.registry.Misbehave(nil)
	list, err := n.images.ListImages(t.Context(), &runtimeapi.ListImagesRequest{})
	if err != nil || len(list.GetImages()) != 0 {
		t.Errorf("half a pull left %v, %v", list.GetImages(), err)
	}
	n.pull(t, n.busybox)
}

// cut kills berthd once a call is under way, and starts it again.
func (n *node) cut(t *testing.T, what string, call func() error, underWay func() bool) {
	t.Helper()
	ended := make(chan error, 1)
	go func() { ended <- call() }()
	eventually(t, what+" is under way", underWay)
	n.killDaemon(t)
	expect.Code(t, what, <-ended, codes.Unavailable)
	n.startDaemon(t)
}

// A newer keeper is installed, and berthd started again: the keeper becomes it,
// with its pid and all containers.
func TestKeeperIsUpgraded(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		_, ctr := n.running(t, forever)
		n.awaitReady(t, ctr)
		keeper := n.keeper(t)
		n.stopDaemon(t)
		newer := t.TempDir()
		for _, name := range []string{"berthd", "berth-keeper"} {
			program, err := os.ReadFile(filepath.Join(n.bin, name))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(newer, name), program, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		n.bin = newer
		n.startDaemon(t)
		if now := n.keeper(t); now != keeper {
			t.Errorf("the keeper was %d, it is %d", keeper, now)
		}
		if !n.isRunner(keeper) {
			t.Error("the keeper still runs the old program")
		}
		n.stopContainer(t, ctr, 10)
		if s := n.container(t, ctr); s.GetExitCode() != 7 {
			t.Errorf("the container ended with %d: %s", s.GetExitCode(), s.GetReason())
		}
	})
}

// A berthd that finds a start of its predecessor under way leaves the container's root
// alone: mounted a second time, its first mount could not be written to any more.
func TestStartUnderWayKeepsItsRoot(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		dir := t.TempDir()
		waiting, gate := filepath.Join(dir, "waiting"), filepath.Join(dir, "gate")
		slow := filepath.Join(dir, n.handler)
		script := fmt.Sprintf("#!/bin/sh\ncase \" $* \" in *\" run \"*) touch %s; until [ -e %s ]; do sleep 0.02; done;; esac\nexec %s \"$@\"\n",
			waiting, gate, leak.NeedTool(t, n.handler))
		if err := os.WriteFile(slow, []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
		n.useRuntime(t, slow)
		n.pull(t, n.busybox)
		pod := n.runPod(t, podConfig(t, "web"))
		id := n.create(t, pod, n.shell("main", "echo more >>/etc/passwd && echo written; "+forever))
		ctx, cancel := context.WithCancel(t.Context())
		answered := make(chan struct{})
		go func() {
			defer close(answered)
			_, _ = n.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id})
		}()
		exists := func(path string) bool {
			_, err := os.Stat(path)
			return err == nil
		}
		eventually(t, "the runtime begins", func() bool { return exists(waiting) })
		n.killDaemon(t)
		cancel()
		<-answered
		n.startDaemon(t)
		resumed := make(chan error, 1)
		go func() {
			_, err := n.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: id})
			resumed <- err
		}()
		eventually(t, "the start is under way again", func() bool {
			text, err := os.ReadFile(filepath.Join(n.run, "pods", pod, "c", id, "record"))
			return err == nil && strings.Contains(string(text), "starting")
		})
		select {
		case err := <-resumed:
			t.Fatalf("the start ended without its runtime: %v", err)
		case <-time.After(200 * time.Millisecond): // for one that mounts the root again
		}
		if err := os.WriteFile(gate, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := <-resumed; err != nil {
			t.Fatal(err)
		}
		eventually(t, "the container writes over a file of its image", func() bool {
			return strings.Contains(n.output(t, id, "stdout"), "written")
		})
	})
}
