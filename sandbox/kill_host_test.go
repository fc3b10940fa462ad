package sandbox

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"berth/image"
	"berth/oci"
	"berth/oci/cgroup"
	"berth/oci/keeper"
	"berth/test/leak"
	"berth/test/registry"
)

// enough bounds everything: longer means broken.
const enough = time.Minute

func forEachRuntime(t *testing.T, test func(t *testing.T, s setup)) {
	t.Helper()
	for _, runtime := range []string{"runc", "crun"} {
		t.Run(runtime, func(t *testing.T) { test(t, newSetup(t, runtime)) })
	}
}

// newSetup has what all lives with one OCI runtime share: an image store that
// was filled once.
func newSetup(t testing.TB, runtime string) setup {
	t.Helper()
	leak.NeedRoot(t)
	leak.NeedTool(t, "nft")
	s := setup{
		DataDir: t.TempDir(),
		Plugins: filepath.Dir(leak.NeedTool(t, "bridge")),
		Runtime: runtime,
		Path:    filepath.Join(t.TempDir(), runtime),
	}
	r := oci.Runtime{Name: runtime, Path: leak.NeedTool(t, runtime)}
	if err := r.Probe(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.OCIVersion = r.OCIVersion
	if err := os.WriteFile(s.Path, fmt.Appendf(nil, killingRuntime, r.Path), 0o755); err != nil {
		t.Fatal(err)
	}

	busybox, err := os.ReadFile(leak.NeedTool(t, "busybox"))
	if err != nil {
		t.Fatal(err)
	}
	layer := registry.Layer(t, registry.File("bin/busybox", 0o755, string(busybox)),
		registry.Link("bin/sh", "busybox"), registry.Link("bin/sleep", "busybox"))
	s.Image = registry.Start(t).Push(t, "busybox", layer, ocispec.ImageConfig{Env: []string{"PATH=/bin"}})
	store := image.Store{Dir: s.DataDir, Registries: image.Registries{Timeout: enough}}
	if err := store.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Pull(t.Context(), image.Pull{Ref: s.Image}); err != nil {
		t.Fatal(err)
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	return s
}

// life is that of one pod, on a run directory of its own, with one keeper and
// one daemon after another.
type life struct {
	setup
	t         *testing.T
	ctx       context.Context
	links     []string // of the host, before
	pod       string   // id, once it is known
	container string
	daemon    *daemonProcess // nil: the next order starts one

	rehearsal map[string][]string // by verb: gets its steps; nil: it is none
	leftAlone bool                // a daemon that recovers is not asked again before it is done
}

// daemonProcess is a victim as its caller sees it.
type daemonProcess struct {
	*exec.Cmd
	orders  *json.Encoder
	answers *json.Decoder
	hangUp  func() error // ends its input
}

// newLife returns one that has not begun. With the test it ends, also on the
// machine.
func newLife(t *testing.T, s setup) *life {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), enough)
	t.Cleanup(cancel)
	l := &life{setup: s, t: t, ctx: ctx, links: links(t)}
	var err error
	if l.RunDir, err = os.MkdirTemp("/dev/shm", "berth-kill-"); err != nil { // the paths of sockets are short
		t.Fatal(err)
	}
	if err := os.Chmod(l.RunDir, 0o711); err != nil { // as oci.MakeRunDir makes it
		t.Fatal(err)
	}
	l.LogDir, l.Shared = t.TempDir(), t.TempDir()
	t.Cleanup(l.endKeeper)
	t.Cleanup(l.endFailed)
	return l
}

// ask gives an order to a daemon. It is not answered if the daemon dies before
// it could.
func (l *life) ask(o order) (a answer, answered bool) {
	l.t.Helper()
	if l.daemon == nil {
		l.startDaemon()
	}
	if err := l.daemon.orders.Encode(o); err != nil {
		l.t.Fatal(err)
	}
	for {
		var next answer
		err := l.daemon.answers.Decode(&next)
		if err == nil && next.Died == "" {
			a, answered = next, true
			if o.Die.certain() {
				continue
			}
			return a, true
		}
		if _, err := os.Stat(killFile(l.RunDir)); o.Die.In != "" && err != nil {
			next.Died = "in " + o.Die.In
		}
		how := l.buryDaemon()
		if next.Died == "" {
			l.t.Fatalf("%s: berthd ended, or hung, before its time %+v: %v", o.Verb, o.Die, how)
		}
		l.t.Logf("%s: killed %s", o.Verb, next.Died)
		return a, answered
	}
}

// startDaemon starts the next victim.
func (l *life) startDaemon() {
	l.t.Helper()
	text, err := json.Marshal(l.setup)
	if err != nil {
		l.t.Fatal(err)
	}
	log, err := os.OpenFile(filepath.Join(l.RunDir, "berthd.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		l.t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.CommandContext(l.ctx, self(l.t))
	cmd.Env = append(os.Environ(), victimEnv+"="+string(text))
	cmd.Stderr = log
	in, err := cmd.StdinPipe()
	if err != nil {
		l.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		l.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	l.daemon = &daemonProcess{cmd, json.NewEncoder(in), json.NewDecoder(out), in.Close}
}

// self is the test binary.
func self(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// buryDaemon waits for the daemon's end and returns how it was.
func (l *life) buryDaemon() error {
	err := l.daemon.Wait()
	l.daemon = nil
	return err
}

// closeDaemon ends a daemon as a good one ends.
func (l *life) closeDaemon() {
	l.t.Helper()
	l.ask(order{Verb: "look"}) // so that there is one
	if err := l.daemon.hangUp(); err != nil {
		l.t.Error(err)
	}
	if err := l.buryDaemon(); err != nil {
		l.t.Errorf("berthd does not end well: %v", err)
	}
}

// endFailed tells what is known of a life that has failed, and clears up after
// it.
func (l *life) endFailed() {
	if !l.t.Failed() {
		return
	}
	if l.daemon != nil {
		_ = l.daemon.Process.Kill()
		_ = l.buryDaemon()
	}
	for _, name := range []string{"berthd.log", "keeper.log"} {
		text, _ := os.ReadFile(filepath.Join(l.RunDir, name))
		l.t.Logf("%s:\n%s", name, text)
	}
	var cancel context.CancelFunc
	l.ctx, cancel = context.WithTimeout(context.Background(), enough)
	defer cancel()
	if a, _ := l.ask(order{Verb: "clear"}); a.Err != "" {
		l.t.Error(a.Err)
	}
	l.closeDaemon()
}

// endKeeper kills the keeper, which has nothing left to keep.
func (l *life) endKeeper() {
	ctx, cancel := context.WithTimeout(context.Background(), enough)
	defer cancel()
	c := keeper.Client{Run: l.RunDir, Binary: self(l.t), Logf: l.t.Logf}
	if err := c.Open(ctx); err != nil {
		l.t.Fatal(err)
	}
	h, err := c.Hello(ctx)
	c.Close()
	if err != nil {
		l.t.Fatal(err)
	}
	if len(h.IDs) > 0 {
		l.t.Errorf("the keeper still knows %v", h.IDs)
	}
	killAll([]int{h.Pid})
	for _, pid := range []int{h.Pid, h.Runner} {
		if err := awaitEnd(ctx, pid); err != nil {
			l.t.Errorf("process %d of the keeper: %v", pid, err)
		}
	}
	if err := errors.Join(cgroup.Remove(oci.CgroupRoot), os.RemoveAll(l.RunDir)); err != nil {
		l.t.Error(err)
	}
}

func awaitEnd(ctx context.Context, pid int) error {
	if pid == 0 {
		return nil
	}
	p, err := cgroup.OpenProcess(pid)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer p.Close()
	return cgroup.Wait(ctx, []*cgroup.Process{p})
}

// eventually looks again until nothing is wrong.
func (l *life) eventually(look func() (wrong []string)) {
	l.t.Helper()
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	for {
		wrong := look()
		if len(wrong) == 0 {
			return
		}
		select {
		case <-again.C:
		case <-l.ctx.Done():
			l.t.Fatalf("still: %s", strings.Join(wrong, ", "))
		}
	}
}

// held is what the machine has of pods and containers, but for what survives a
// reboot: that is written now and then.
func (l *life) held() (held []string) {
	for _, pattern := range []string{
		l.RunDir + "/pods/*", l.RunDir + "/exec/*", l.RunDir + "/s/*", l.RunDir + "/runtimes/*/*",
		l.DataDir + "/containers/*", l.DataDir + "/ingest/*", l.DataDir + "/trash/*",
		l.DataDir + "/cni/attachments/*", l.DataDir + "/cni/results/*", l.DataDir + "/cni/ipam",
		oci.NetNSDir + "/berth-*",
	} {
		found, _ := filepath.Glob(pattern)
		held = append(held, found...)
	}
	for _, name := range cgroup.Children(oci.CgroupRoot) {
		held = append(held, "cgroup "+oci.CgroupRoot+"/"+name)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		l.t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if point := strings.Fields(line)[4]; strings.HasPrefix(point, l.RunDir+"/") || strings.HasPrefix(point, l.DataDir+"/") {
			held = append(held, "mount "+point)
		}
	}
	for _, link := range links(l.t) {
		if !slices.Contains(l.links, link) {
			held = append(held, "interface "+link)
		}
	}
	return held
}

// links are the names of the network interfaces.
func links(t *testing.T) (names []string) {
	t.Helper()
	text, err := os.ReadFile("/proc/self/net/dev")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if name, _, ok := strings.Cut(line, ":"); ok {
			names = append(names, strings.TrimSpace(name))
		}
	}
	return names
}

// runs says whether the container has a process.
func (l *life) runs() bool {
	pids, err := cgroup.Procs(filepath.Join(oci.CgroupRoot, l.pod, l.container))
	if err != nil {
		l.t.Fatal(err)
	}
	return l.container != "" && len(pids) > 0
}

// strayExecs are processes of execs whose daemon has died.
func (l *life) strayExecs() (stray []string) {
	pids, err := cgroup.Procs(oci.CgroupRoot)
	if err != nil {
		l.t.Fatal(err)
	}
	for _, pid := range pids {
		cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if bytes.Contains(cmdline, []byte("1234")) {
			stray = append(stray, fmt.Sprintf("process %d, %q", pid, cmdline))
		}
	}
	return stray
}

// notStarted complains until the container's process has said that it is there.
func (l *life) notStarted() []string {
	if l.starts() == "" {
		return []string{"the container has not started"}
	}
	return nil
}

// starts has a line of each process that the container ever was.
func (l *life) starts() string {
	text, err := os.ReadFile(filepath.Join(l.Shared, "starts"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		l.t.Fatal(err)
	}
	return string(text)
}

// wantOutput checks that the container was one process and wrote each line once.
func (l *life) wantOutput() {
	l.t.Helper()
	if starts := l.starts(); starts != "started\n" {
		l.t.Errorf("processes of the container: %q, want one", starts)
	}
	log, err := os.ReadFile(filepath.Join(l.LogDir, "x.log"))
	if err != nil {
		l.t.Error(err)
	}
	var said []string
	for line := range strings.Lines(string(log)) {
		_, rest, _ := strings.Cut(line, " ")
		said = append(said, rest)
	}
	want := []string{"stdout F up\n", "stdout F bye\n"}
	if !slices.Equal(said, want) {
		l.t.Errorf("the log has %q, want %q", said, want)
	}
}
