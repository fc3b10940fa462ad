package conformance

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/test/expect"
)

func TestExecSync(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		_, id := n.running(t, forever)
		resp, err := n.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", "echo out; echo err >&2; exit 42"}})
		if err != nil {
			t.Fatal(err)
		}
		if string(resp.GetStdout()) != "out\n" || string(resp.GetStderr()) != "err\n" || resp.GetExitCode() != 42 {
			t.Errorf("answered %q, %q, %d", resp.GetStdout(), resp.GetStderr(), resp.GetExitCode())
		}
		for script, want := range map[string]string{
			"echo $$; umask; env | grep -c NOTIFY_SOCKET": "\n0022\n0",
			"grep CapInh /proc/self/status":               "CapInh:\t0000000000000000",
			"cat /proc/self/oom_score_adj":                n.exec(t, id, "cat", "/proc/1/oom_score_adj"),
			"ls /proc/self/fd | wc -l":                    "4",
		} {
			if got := n.exec(t, id, "sh", "-c", script+"; true"); !strings.HasSuffix(got, want) {
				t.Errorf("%q says %q, want %q", script, got, want)
			}
		}
	})
}

// Only DeadlineExceeded is a probe's timeout, and nothing of the command lives
// on.
func TestExecSyncTimeout(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		_, id := n.running(t, forever)
		_, err := n.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{
			ContainerId: id, Timeout: 1, Cmd: []string{"sh", "-c", "sleep 4713 & setsid sleep 4713 & sleep 4713"},
		})
		expect.Code(t, "a command that takes too long", err, codes.DeadlineExceeded)
		eventually(t, "its processes are gone", func() bool { return len(processesNamed("sleep 4713")) == 0 })
		if c := n.container(t, id); c.GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING {
			t.Errorf("the container is %v", c.GetState())
		}
	})
}

// Guards against killing by descent alone: the container's init is the parent of
// what a probe has double-forked. The container forks all the time, so its own
// processes are as young as the probe's.
func TestExecSyncTimeoutKillsWhatWasDoubleForked(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		_, id := n.running(t, "setsid sleep 4992 & while :; do sleep 0.05; done")
		eventually(t, "the container has forked", func() bool { return len(processesNamed("sleep 4992")) == 1 })
		own := processesNamed("sleep 4992")
		_, err := n.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{
			ContainerId: id, Timeout: 1, Cmd: []string{"sh", "-c", "(setsid sleep 4991 &); sleep 100"},
		})
		expect.Code(t, "a command that takes too long", err, codes.DeadlineExceeded)
		if left := processesNamed("sleep 4991"); len(left) > 0 {
			t.Errorf("processes %v live on", left)
		}
		if still := processesNamed("sleep 4992"); !slices.Equal(still, own) {
			t.Errorf("the container's own are %v, were %v", still, own)
		}
		if strings.Contains(err.Error(), "may live on") {
			t.Errorf("the answer says %q", err)
		}
		n.exec(t, id, "true")
	})
}

// Guards against a frozen pod: a probe keeps its timeout, and a
// container can be stopped. The rest of the pod stays frozen.
func TestFrozenPod(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		pod, id := n.running(t, forever)
		state, frozen, thawed := "/sys/fs/cgroup/freezer/berth/"+pod+"/freezer.state", "FROZEN", "THAWED"
		if _, err := os.Stat("/sys/fs/cgroup/freezer"); err != nil {
			state, frozen, thawed = "/sys/fs/cgroup/berth/"+pod+"/cgroup.freeze", "1", "0"
		}
		t.Cleanup(func() { _ = os.WriteFile(state, []byte(thawed), 0) })
		if err := os.WriteFile(state, []byte(frozen), 0); err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		if _, err := n.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Timeout: 2, Cmd: []string{"true"}}); err == nil {
			t.Error("a command ended in a frozen pod")
		}
		if took := time.Since(begun); took > 5*time.Second {
			t.Errorf("a command with a timeout of 2 s took %v", took)
		}
		begun = time.Now()
		if _, err := n.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 1}); err != nil {
			t.Error(err)
		}
		if took := time.Since(begun); took > 5*time.Second {
			t.Errorf("stopping took %v with a grace of 1 s", took)
		}
		if c := n.container(t, id); c.GetState() != runtimeapi.ContainerState_CONTAINER_EXITED || c.GetExitCode() != 137 {
			t.Errorf("the container is %v, exit code %d", c.GetState(), c.GetExitCode())
		}
		if b, err := os.ReadFile(state); err != nil || string(b) != frozen+"\n" {
			t.Errorf("the pod is %q, %v", b, err)
		}
	})
}

// A flood is cut to what one message holds, in bounded memory, and the command
// goes on to its end.
func TestExecSyncFlood(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		_, id := n.running(t, forever)
		before := n.peakMemory(t)
		resp, err := n.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{
			ContainerId: id, Cmd: []string{"sh", "-c", "head -c 200000000 /dev/zero; head -c 100000000 /dev/zero >&2; exit 5"},
		})
		if err != nil {
			t.Fatal(err)
		}
		got := len(resp.GetStdout()) + len(resp.GetStderr())
		if got > 16<<20 || got < 15<<20 || resp.GetExitCode() != 5 {
			t.Errorf("%d bytes came back, exit code %d", got, resp.GetExitCode())
		}
		if grown := n.peakMemory(t) - before; grown > 128<<20 {
			t.Errorf("berthd took %d MiB for it", grown>>20)
		}
		_, err = n.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"yes"}, Timeout: 1})
		expect.Code(t, "yes", err, codes.DeadlineExceeded)
	})
}

// peakMemory is the most that berthd has had, in bytes.
func (n *node) peakMemory(t *testing.T) int { return n.memory(t, "VmHWM") }

// memory is a line of berthd's /proc/PID/status, in bytes.
func (n *node) memory(t *testing.T, line string) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", n.berthd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	_, value, _ := strings.Cut(string(text), line+":")
	kib, err := strconv.Atoi(strings.Fields(value)[0])
	if err != nil {
		t.Fatal(err)
	}
	return kib << 10
}

func TestExecSyncFailures(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		pod, id := n.running(t, forever)
		exec := func(id string, cmd ...string) error {
			_, err := n.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: cmd})
			return err
		}
		expect.Code(t, "a program that is not there", exec(id, "/bin/frobnicate"), codes.Unknown, "/bin/frobnicate")
		expect.Code(t, "no program", exec(id), codes.InvalidArgument, "cmd")
		created := n.create(t, pod, n.shell("created", "true"))
		expect.Code(t, "a container that was not started", exec(created, "true"), codes.FailedPrecondition)
		n.stopContainer(t, id, 0)
		expect.Code(t, "a container that has ended", exec(id, "true"), codes.FailedPrecondition)
	})
}

func TestManyExecsAtOnce(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		_, id := n.running(t, forever)
		var all sync.WaitGroup
		for i := range 20 {
			all.Go(func() {
				resp, err := n.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", fmt.Sprintf("echo %d; exit %d", i, i)}})
				if err != nil || int(resp.GetExitCode()) != i || string(resp.GetStdout()) != fmt.Sprintf("%d\n", i) {
					t.Errorf("exec %d: code %d, %q, %v", i, resp.GetExitCode(), resp.GetStdout(), err)
				}
			})
		}
		all.Wait()
	})
}
