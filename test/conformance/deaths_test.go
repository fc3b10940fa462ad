package conformance

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// deathsTime is for how long each runtime's node is hit.
const deathsTime = 12 * time.Second

// Containers begin and end while one of berthd, the keeper and the runner, or two
// of them at once, are killed, again and again, each time that all are back. Each
// container's program runs once, its exit code is its own, and its line is in its
// log. KILL_SEED repeats a run's choices.
func TestAnyTwoMayDieTogether(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if v := os.Getenv("KILL_SEED"); v != "" {
		var err error
		if seed, err = strconv.ParseUint(v, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("KILL_SEED=%d", seed)
	forEachRuntime(t, func(t *testing.T, n *node) {
		n.pull(t, n.busybox)
		pod := n.runPod(t, podConfig(t, "web"))
		d := deaths{node: n, count: make(map[string]int)}
		var workers sync.WaitGroup
		for w := range 3 {
			rng := rand.New(rand.NewPCG(seed, uint64(w)))
			workers.Go(func() {
				for i := 0; i == 0 || !d.over.Load() && !t.Failed(); i++ {
					d.live(t, pod, fmt.Sprintf("c%d-%d", w, i), rng.IntN(256))
				}
			})
		}
		rng := rand.New(rand.NewPCG(seed, 1<<32))
		for end := time.Now().Add(deathsTime); time.Now().Before(end) && !t.Failed(); {
			select {
			case <-time.After(time.Duration(rng.IntN(200)) * time.Millisecond):
			case <-t.Context().Done():
			}
			d.kill(t, victims[rng.IntN(len(victims))])
		}
		d.over.Store(true)
		workers.Wait()
		t.Logf("deaths: %v; %d containers", d.count, d.containers.Load())
	})
}

// victims are who is killed at once.
var victims = [][]string{
	{"berthd"}, {"keeper"}, {"runner"}, {"berthd", "keeper"}, {"berthd", "runner"}, {"keeper", "runner"},
}

// deaths are those of one node's processes.
type deaths struct {
	*node
	count      map[string]int
	over       atomic.Bool // no more deaths to come
	containers atomic.Int64
}

// kill kills the victims and waits until all are back.
func (d *deaths) kill(t *testing.T, who []string) {
	t.Helper()
	keeper, runner := d.keeper(t), d.runner(t)
	var dead []int
	for _, v := range who {
		switch v {
		case "berthd":
			if err := d.berthd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		case "keeper":
			dead = append(dead, keeper)
		case "runner":
			dead = append(dead, runner)
		}
	}
	for _, pid := range dead {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatalf("kill %v: %v", who, err)
		}
	}
	if who[0] == "berthd" {
		d.berthd.Wait() // its error is the signal
		d.startDaemon(t)
	}
	eventually(t, "all three serve", func() bool { return d.allServe(t, dead) })
	d.count[fmt.Sprint(who)]++
}

// allServe reports that each of the three holds what is to be held, and that none
// of the dead is left.
func (d *deaths) allServe(t *testing.T, dead []int) bool {
	keeper := d.keeper(t)
	if keeper == 0 || slices.Contains(dead, keeper) {
		return false
	}
	var runners []int
	all, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range all {
		pid, err := strconv.Atoi(filepath.Base(dir))
		args, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err == nil && string(args) == "berth-runner\x00runner\x00"+d.run+"\x00" {
			runners = append(runners, pid)
		}
	}
	if len(runners) != 1 || slices.Contains(dead, runners[0]) ||
		!slices.Contains(d.processes(keeper), runners[0]) || !holdsJournal(t, runners[0]) {
		return false
	}
	// berthd is ready when it has told the keeper all, and holds the same.
	resp, err := d.Status(t.Context(), &runtimeapi.StatusRequest{})
	return err == nil && slices.ContainsFunc(resp.GetStatus().GetConditions(), func(c *runtimeapi.RuntimeCondition) bool {
		return c.GetType() == runtimeapi.RuntimeReady && c.GetStatus()
	})
}

// holdsJournal reports that a runner serves: its predecessor has left.
func holdsJournal(t *testing.T, runner int) bool {
	t.Helper()
	locks, err := os.ReadFile("/proc/locks")
	if err != nil {
		t.Fatal(err)
	}
	return regexp.MustCompile(fmt.Sprintf(`: FLOCK +ADVISORY +WRITE +%d `, runner)).Match(locks)
}

// live is the life of one container, which is not over before berthd can have looked
// at it, and whose caller asks again as the kubelet does.
func (d *deaths) live(t *testing.T, pod, name string, code int) {
	ctx := t.Context()
	config := d.shell(name, fmt.Sprintf("echo begun; sleep 0.%d; exit %d", 1+code%9, code))
	var id string
	ask := func(what string, call func() error) bool {
		for {
			err := call()
			if c := status.Code(err); c == codes.Unavailable {
				continue // the client waits for the next berthd
			} else if err != nil {
				t.Errorf("%s: %s: %v", name, what, err)
			}
			return err == nil
		}
	}
	if !ask("create", func() error {
		resp, err := d.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: config})
		id = resp.GetContainerId()
		return err
	}) {
		return
	}
	ask("start", func() error {
		_, err := d.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id})
		if status.Code(err) == codes.FailedPrecondition {
			return nil // started by the try before, and ended since
		}
		return err
	})
	var s *runtimeapi.ContainerStatus
	for s.GetState() != runtimeapi.ContainerState_CONTAINER_EXITED {
		if !ask("status", func() error {
			resp, err := d.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id})
			s = resp.GetStatus()
			return err
		}) {
			return
		}
	}
	d.containers.Add(1)
	if s.GetExitCode() != int32(code) {
		t.Errorf("%s: exit code %d, %s: %s, want %d", name, s.GetExitCode(), s.GetReason(), s.GetMessage(), code)
	}
	if log, err := os.ReadFile(s.GetLogPath()); err != nil || bytes.Count(log, []byte("begun\n")) != 1 {
		t.Errorf("%s: log %q, %v, want one line", name, log, err)
	}
	ask("remove", func() error {
		_, err := d.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: id})
		return err
	})
}

// With all three dead, nobody sees how a container ends. Its status says why.
func TestAllThreeDieTogether(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		const program = "sleep 4993"
		_, id := n.running(t, "echo begun; exec "+program)
		eventually(t, "the program runs", func() bool { return n.output(t, id, "stdout") == "begun\n" && len(processesNamed(program)) == 1 })
		pid, keeper, runner := n.pidOf(t, id), n.keeper(t), n.runner(t)
		// Stopped first, or it starts another of what dies before it.
		if err := syscall.Kill(keeper, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		n.killDaemon(t)
		for _, pid := range []int{runner, keeper} {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the program has ended", func() bool { return len(processesNamed(program)) == 0 })
		n.startDaemon(t)
		var s *runtimeapi.ContainerStatus
		eventually(t, "its end is seen", func() bool {
			s = n.container(t, id)
			return s.GetState() == runtimeapi.ContainerState_CONTAINER_EXITED
		})
		const why = "berthd, the keeper and the runner were all dead when it ended"
		if s.GetExitCode() != 255 || s.GetReason() != "Unknown" || !strings.Contains(s.GetMessage(), why) {
			t.Errorf("exit code %d, %s: %s", s.GetExitCode(), s.GetReason(), s.GetMessage())
		}
		if out := n.output(t, id, "stdout"); out != "begun\n" {
			t.Errorf("output %q, want what was in the log", out)
		}
	})
}
