package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"berth/cni"
	"berth/image"
	"berth/oci"
	"berth/oci/keeper"
)

// victimEnv holds the JSON of a setup: this process then is a victim.
const victimEnv = "BERTH_SANDBOX_TEST_VICTIM"

// setup is what a victim is made of.
type setup struct {
	RunDir, DataDir string // as berthd's
	Plugins         string // directory of the CNI reference plugins
	Runtime         string // name of the OCI runtime
	Path            string // of its binary
	OCIVersion      string // that it takes
	Image           string // reference
	LogDir          string // of the pod
	Shared          string // directory that the container has at /shared
	Users           bool   // the pod has a user namespace
}

// order is a line that a victim reads. It opens, and recovers, with the first.
type order struct {
	Verb string
	ID   string // of the pod or container, where the verb needs one
	Rest bool   // answer only when no effect is under way any more
	Die  death
}

// death is when a victim is to die; zero: it lives.
type death struct {
	// At the Count-th passing of Step, counted from the order, or from the
	// victim's start if the order is its first.
	Step  string // "before EFFECT" or "after EFFECT"; empty: any, if it comes to that
	Count int

	// Or while others are at work: at this step of the keeper or the runner
	// (keeper.Step), or in "runtime", a command of the OCI runtime.
	In string

	With string // "runner" or "keeper": that one dies a moment before
}

// certain deaths come, if after the answer.
func (d death) certain() bool { return d.Step != "" || d.In != "" }

// answer is a line that a victim writes.
type answer struct {
	Died   string // the step; its last line
	Err    string
	ID     string   // of what was made
	Said   string   // of an exec: its output and exit code
	Seen   string   // pods and containers, and their states
	Passed []string // steps, since the order
}

// victim is a small berthd: the real Pods, Runtime, Network and Images without
// CRI. It does what it is told, and kills itself at a step.
type victim struct {
	setup
	*Pods  // nil before the first order
	images *image.Store
	keeper *keeper.Client

	mu      sync.Mutex
	answers *json.Encoder
	passed  []string   // steps, since the order
	active  int        // effects under way
	rested  *sync.Cond // an effect has ended
	death
}

// beVictim is the process: it lives until its input ends.
func beVictim(text string) error {
	v := &victim{answers: json.NewEncoder(os.Stdout)}
	v.rested = sync.NewCond(&v.mu)
	if err := json.Unmarshal([]byte(text), &v.setup); err != nil {
		return err
	}
	orders := json.NewDecoder(os.Stdin)
	for {
		var o order
		if err := orders.Decode(&o); errors.Is(err, io.EOF) {
			return v.close()
		} else if err != nil {
			return err
		}
		if err := v.obey(context.Background(), o); err != nil {
			return err
		}
	}
}

func (v *victim) obey(ctx context.Context, o order) error {
	v.mu.Lock()
	v.death, v.passed = o.Die, nil
	v.mu.Unlock()
	if v.Pods == nil {
		if err := v.open(ctx); err != nil {
			return err
		}
	}
	if o.Die.In != "" {
		if err := v.orderDeath(); err != nil {
			return err
		}
	}
	var a answer
	if err := v.do(ctx, o, &a); err != nil {
		a.Err = err.Error()
	}
	a.Seen = v.seen()

	v.mu.Lock()
	defer v.mu.Unlock()
	for o.Rest && v.active > 0 {
		v.rested.Wait()
	}
	a.Passed = v.passed
	if !v.certain() {
		v.death = death{}
	}
	return v.answers.Encode(a)
}

func (v *victim) open(ctx context.Context) error {
	v.images = &image.Store{Dir: v.DataDir, Registries: image.Registries{Timeout: enough}}
	if err := v.images.Open(ctx); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	v.keeper = &keeper.Client{Run: v.RunDir, Binary: self, Logf: klog.Infof}
	if err := v.keeper.Open(ctx); err != nil {
		return err
	}
	network := &cni.Network{
		ConfDir: filepath.Join(v.DataDir, "net.d"), BinDirs: []string{v.Plugins}, CacheDir: filepath.Join(v.DataDir, "cni"),
		Timeout: enough,
	}
	network.Builtin.Store(true)
	v.Pods = &Pods{
		Dir:            filepath.Join(v.RunDir, "pods"),
		Mirror:         filepath.Join(v.DataDir, "pods"),
		DefaultRuntime: v.Runtime,
		Runtimes: map[string]Runtime{v.Runtime: &oci.Runtime{
			Name: v.Runtime, Path: v.Path, Run: v.RunDir, Keeper: v.keeper, Timeout: enough, OCIVersion: v.OCIVersion,
		}},
		Network: network,
		Images:  v.images,
		hook:    v.step,
	}
	return v.Pods.Open(ctx)
}

func (v *victim) close() error {
	v.Pods.Close()
	v.keeper.Close()
	return v.images.Close()
}

// step is Pods.hook.
func (v *victim) step(effect string, after bool) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	name := "before " + strings.TrimSpace(effect)
	if after {
		name = "after " + strings.TrimSpace(effect)
		v.active--
		v.rested.Broadcast()
	} else {
		v.active++
	}
	v.passed = append(v.passed, name)
	if v.Count > 0 && (v.Step == "" || v.Step == name) {
		if v.Count--; v.Count == 0 {
			v.dieLocked(name)
		}
	}
	return nil
}

func (v *victim) dieLocked(step string) {
	pids, err := v.dying()
	if err == nil {
		err = v.answers.Encode(answer{Died: step})
	}
	if err == nil {
		killAll(pids)
	}
	panic(err)
}

// dying are those who are to die, in that order.
func (v *victim) dying() ([]int, error) {
	if v.With == "" {
		return []int{os.Getpid()}, nil
	}
	h, err := v.keeper.Hello(context.Background())
	if v.With == "keeper" {
		return []int{h.Pid, os.Getpid()}, err
	}
	return []int{h.Runner, os.Getpid()}, err
}

func killAll(pids []int) {
	for _, pid := range pids {
		if pid > 0 { // there may be no runner at the moment, and 0 is many
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}

// killFile holds a step, and in the next line the pids of those who are to be
// killed there by whoever takes the step.
func killFile(run string) string { return filepath.Join(run, "kill") }

// orderDeath writes the kill file.
func (v *victim) orderDeath() error {
	pids, err := v.dying()
	if err != nil {
		return err
	}
	text := v.In + "\n" + strings.Trim(fmt.Sprint(pids), "[]") + "\n"
	return writeFile(killFile(v.RunDir), []byte(text), 0o600)
}

// killIn is keeper.Step of the test binary.
func killIn(step string) {
	file := killFile(os.Args[len(os.Args)-1])
	text, err := os.ReadFile(file)
	at, list, _ := strings.Cut(string(text), "\n")
	if err != nil || at != step || os.Remove(file) != nil {
		return
	}
	var pids []int
	for _, field := range strings.Fields(list) {
		if pid, err := strconv.Atoi(field); err == nil {
			pids = append(pids, pid)
		}
	}
	killAll(pids)
}

// killingRuntime is an OCI runtime that does as killIn, and then what the real
// one does. Its second argument is its root directory.
const killingRuntime = `#!/bin/sh
file=${2%%/runtimes/*}/kill
if [ -e "$file" ] && { read -r step; read -r pids; } <"$file" && [ "$step" = runtime ] && rm "$file"; then
	kill -9 $pids
fi
exec %s "$@"
`

// do performs the verb as cri does: what is gone is stopped and removed.
func (v *victim) do(ctx context.Context, o order, a *answer) error {
	switch o.Verb {
	case "look":
		return nil
	case "clear": // after a test that failed
		for _, p := range v.List() {
			if err := p.Remove(ctx); err != nil {
				return err
			}
		}
		return nil
	case "run":
		p, err := v.Pods.Run(ctx, RunRequest{Config: v.podConfig()})
		if err == nil {
			a.ID = p.ID()
		}
		return err
	case "create", "stop pod", "remove pod":
		p, err := v.Pod(o.ID)
		if errors.Is(err, ErrNotFound) && o.Verb != "create" {
			return nil
		} else if err != nil {
			return err
		}
		return v.doPod(ctx, p, o, a)
	}
	c, err := v.Container(o.ID)
	if errors.Is(err, ErrNotFound) && (o.Verb == "stop" || o.Verb == "remove") {
		return nil
	} else if err != nil {
		return err
	}
	return v.doContainer(ctx, c, o, a)
}

func (v *victim) doPod(ctx context.Context, p *Pod, o order, a *answer) error {
	switch o.Verb {
	case "stop pod":
		return p.Stop(ctx)
	case "remove pod":
		return p.Remove(ctx)
	}
	c, err := p.CreateContainer(ctx, v.containerConfig())
	if err == nil {
		a.ID = c.ID()
	}
	return err
}

func (v *victim) doContainer(ctx context.Context, c *Container, o order, a *answer) error {
	switch o.Verb {
	case "start":
		return c.Start(ctx)
	case "exec":
		script := "echo hello; exit 5"
		if o.Die.certain() {
			script = "echo hello; " + strayExec
		}
		out := execOutput{victim: v}
		code, err := c.Exec(ctx, Exec{Cmd: []string{"sh", "-c", script}, Stdout: &out})
		a.Said = fmt.Sprint(out.text.String(), code)
		return err
	case "stop":
		return c.Stop(ctx, 10*time.Minute)
	case "remove":
		return c.Remove(ctx)
	}
	return fmt.Errorf("no verb %q", o.Verb)
}

// strayExec would outlive the victim by far.
const strayExec = "sleep 1234; true"

// execOutput takes what an exec writes, which is a step as well.
type execOutput struct {
	*victim
	text strings.Builder
}

func (e *execOutput) Write(b []byte) (int, error) {
	if err := e.step("exec's output", false); err != nil {
		return 0, err
	}
	n, _ := e.text.Write(b)
	return n, e.step("exec's output", true)
}

// seen is what clients see: pods, which have an address, and containers.
func (v *victim) seen() string {
	var list []string
	for _, p := range v.List() {
		rec := p.record()
		list = append(list, string(rec.State))
		if rec.State == podReady && len(rec.Attachment.IPs) == 0 {
			list = append(list, "without an address")
		}
	}
	for _, c := range v.Containers() {
		rec := c.record()
		list = append(list, string(rec.State))
		if !rec.FinishedAt.IsZero() {
			list = append(list, fmt.Sprint(rec.ExitCode), rec.Reason)
		}
	}
	return strings.Join(list, " ")
}

func (v *victim) podConfig() *runtimeapi.PodSandboxConfig {
	config := podConfig("a")
	config.LogDirectory = v.LogDir
	podLinux(config).SecurityContext.NamespaceOptions = v.namespaces()
	return config
}

// namespaces: one with a user namespace shares its pid namespace too, whose init
// lives in it.
func (v *victim) namespaces() *nsOpt {
	if !v.Users {
		return nil
	}
	return &nsOpt{Pid: nsPod, UsernsOptions: usersOf(1<<20, 1<<16)}
}

func (v *victim) containerConfig() *runtimeapi.ContainerConfig {
	ns := v.namespaces()
	uids, gids := ns.GetUsernsOptions().GetUids(), ns.GetUsernsOptions().GetGids()
	return &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "x"},
		Image:    &runtimeapi.ImageSpec{Image: v.Image},
		Command:  []string{"sh", "-c", containerScript},
		LogPath:  "x.log",
		Mounts: []*runtimeapi.Mount{
			{ContainerPath: "/shared", HostPath: v.Shared, UidMappings: uids, GidMappings: gids},
			{ContainerPath: "/viewed", Readonly: true, Image: &runtimeapi.ImageSpec{Image: v.Image}, ImageSubPath: "bin", UidMappings: uids, GidMappings: gids},
		},
		Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &ctrSC{NamespaceOptions: ns}},
	}
}

// containerScript runs until it is told to end, and ends with 7.
const containerScript = `
trap 'trap "" TERM; /viewed/busybox echo bye; exit 7' TERM
echo up
echo started >>/shared/starts
while :; do sleep 3600 & wait; done
`
