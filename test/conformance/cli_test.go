package conformance

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth/test/leak"
	"berth/test/registry"
)

// berth is a command line of the operator's tool that has ended.
type berth struct {
	code           int
	stdout, stderr string
}

func (n *node) tool(args ...string) *exec.Cmd {
	return exec.Command(filepath.Join(n.bin, "berth"), append([]string{"--socket", n.socket()}, args...)...)
}

func (n *node) berth(t *testing.T, args ...string) berth {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd := n.tool(args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return berth{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// want fails t unless the command did and said this; a part is enough.
func (b berth) want(t *testing.T, what string, code int, stdout, stderr string) {
	t.Helper()
	if b.code != code || !strings.Contains(b.stdout, stdout) || !strings.Contains(b.stderr, stderr) {
		t.Errorf("%s: code %d, stdout %q, stderr %q; want %d, %q, %q", what, b.code, b.stdout, b.stderr, code, stdout, stderr)
	}
}

// onOneNodeByHand is a node whose pods are made by the tool: their logs are
// where the tool keeps them.
func onOneNodeByHand(t *testing.T, test func(t *testing.T, n *node)) {
	t.Helper()
	leak.NeedRoot(t)
	// What the tool makes of its directories goes when they are empty.
	t.Cleanup(func() {
		for _, dir := range []string{"/var/log/berth/pods", "/var/log/berth"} {
			os.Remove(dir)
		}
	})
	onOneNode(t, test)
}

func TestToolRunsAContainer(t *testing.T) {
	onOneNodeByHand(t, func(t *testing.T, n *node) {
		ran := n.berth(t, "run", "--rm", "--name", "conf-job", "-e", "A=b", n.busybox, "sh", "-c", "echo out $A; echo err >&2; exit 3")
		ran.want(t, "run", 3, "out b\n", "err\n")
		if !strings.Contains(ran.stderr, "Pulled "+n.busybox) {
			t.Errorf("it does not say that it pulled: %q", ran.stderr)
		}
		if left := n.berth(t, "ps", "-aq"); left.stdout != "" {
			t.Errorf("--rm left %q", left.stdout)
		}
		if _, err := os.Stat("/var/log/berth/pods/conf-job"); err == nil {
			t.Error("--rm left the log directory")
		}
		n.berth(t, "run", "--rm", n.busybox, "/bin/frobnicate").want(t, "a program that is not there", 127, "", "/bin/frobnicate")
		n.berth(t, "run", "--rm", n.busybox, "frobnicate").want(t, "a program that is nowhere in PATH", 127, "", "frobnicate")
		n.berth(t, "run", "--rm", n.busybox, "/etc").want(t, "a directory", 126, "", "")
		for name, want := range map[string]int{"/bin/gone": 127, "gone": 127, "/etc/dull": 126} {
			config := ocispec.ImageConfig{Cmd: []string{name}}
			ref := n.pullWith(t, "cmd"+strings.ReplaceAll(name, "/", "-"), config, registry.File("etc/dull", 0o644, "#!/bin/sh\n"))
			n.berth(t, "run", "--rm", ref).want(t, "the image's Cmd "+name, want, "", "")
		}
		n.berth(t, "run", n.registry.Host()+"/none", "true").want(t, "an image that is not there", 125, "", "none")
		if left := n.berth(t, "ps", "-aq"); left.stdout != "" {
			t.Errorf("what failed left %q", left.stdout)
		}
	})
}

func TestToolKeepsAContainer(t *testing.T) {
	onOneNodeByHand(t, func(t *testing.T, n *node) {
		n.berth(t, "pull", n.busybox).want(t, "pull", 0, "Pulled "+n.busybox, "")
		n.berth(t, "pull", n.busybox).want(t, "pull again", 0, "is up to date", "")
		n.berth(t, "images").want(t, "images", 0, "busybox   1 ", "")
		id := strings.TrimSpace(n.berth(t, "run", "-d", "--name", "conf-web", n.busybox, "sh", "-c", forever).stdout)
		if len(id) != 64 {
			t.Fatalf("run -d printed %q", id)
		}
		n.awaitReady(t, id)
		n.berth(t, "ps").want(t, "ps", 0, "conf-web   "+id[:12], "")
		n.berth(t, "ps", "-q").want(t, "ps -q", 0, id[:12]+"\n", "")
		n.berth(t, "logs", "conf-web").want(t, "logs", 0, "ready\n", "")
		n.berth(t, "exec", id[:8], "sh", "-c", "echo out; echo err >&2; exit 5").want(t, "exec", 5, "out\n", "err\n")
		n.berth(t, "exec", "conf-web", "frobnicate").want(t, "exec of what is not there", 127, "", "frobnicate")
		n.berth(t, "exec", "conf-web", "/etc").want(t, "exec of a directory", 126, "", "")
		n.berth(t, "status").want(t, "status", 0, "1, 1 running", "")
		n.berth(t, "run", "--name", "conf-web", n.busybox, "true").want(t, "a name twice", 125, "", "the name conf-web is taken")
		n.berth(t, "rm", "conf-web").want(t, "rm of what runs", 1, "", "is running")
		n.berth(t, "stop", "nothing", "conf-web").want(t, "stop", 1, "conf-web\n", `no container "nothing"`)
		n.berth(t, "ps").want(t, "ps", 0, "NAME", "")
		n.berth(t, "ps", "-a").want(t, "ps -a", 0, "exited (7)", "")
		n.berth(t, "logs", "-f", "conf-web").want(t, "logs -f of what has ended", 0, "ready\n", "")
		n.berth(t, "exec", "conf-web", "true").want(t, "exec in what has ended", 125, "", "not running")
		n.berth(t, "rm", "conf-web").want(t, "rm", 0, "conf-web\n", "")
		if _, err := os.Stat("/var/log/berth/pods/conf-web"); err == nil {
			t.Error("rm left the log directory")
		}
	})
}

// Ctrl-C stops the container, whose code is the tool's.
func TestToolPassesOnAnInterrupt(t *testing.T) {
	onOneNodeByHand(t, func(t *testing.T, n *node) {
		n.pull(t, n.busybox)
		var out bytes.Buffer
		cmd := n.tool("run", "--rm", "--name", "conf-int", n.busybox, "sh", "-c", forever)
		cmd.Stderr = os.Stderr
		pipe, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ready := make([]byte, len("ready\n"))
		if _, err := pipe.Read(ready); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
			t.Fatal(err)
		}
		out.ReadFrom(pipe)
		cmd.Wait()
		if code := cmd.ProcessState.ExitCode(); code != 7 {
			t.Errorf("it ended with %d after %q", code, out.String())
		}
	})
}
