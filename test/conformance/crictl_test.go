package conformance

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// crictl is the tool of kubernetes-sigs/cri-tools against one node.
type crictl struct {
	t      *testing.T
	path   string
	config string
	dir    string // of pod.json and ctr.json
}

// newCrictl skips t where no crictl is on PATH: neither Debian nor the Go module
// proxy has it, so that no set-up can install it.
func newCrictl(t *testing.T, n *node) *crictl {
	t.Helper()
	path, err := exec.LookPath("crictl")
	if err != nil {
		t.Skip("crictl is not on PATH")
	}
	c := &crictl{t: t, path: path, dir: t.TempDir()}
	c.config = c.write("crictl.yaml", "runtime-endpoint: unix://"+n.socket()+"\nimage-endpoint: unix://"+n.socket()+"\ntimeout: 30\n")
	return c
}

func (c *crictl) write(name, text string) (path string) {
	c.t.Helper()
	path = filepath.Join(c.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		c.t.Fatal(err)
	}
	return path
}

func (c *crictl) command(args ...string) *exec.Cmd {
	return exec.Command(c.path, append([]string{"--config", c.config}, args...)...)
}

// run runs a command and returns what it printed; it fails t unless the command
// ended well and its output matches want.
func (c *crictl) run(want string, args ...string) string {
	c.t.Helper()
	var stdout, stderr bytes.Buffer
	cmd := c.command(args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if err != nil || !regexp.MustCompile(want).MatchString(stdout.String()) {
		c.t.Errorf("crictl %q: %v, %q, %q; want %q", args, err, stdout.String(), stderr.String(), want)
	}
	return strings.TrimSpace(stdout.String())
}

// fails runs a command that has to fail, saying what matches want.
func (c *crictl) fails(want string, args ...string) {
	c.t.Helper()
	out, err := c.command(args...).CombinedOutput()
	if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || !regexp.MustCompile(want).Match(out) {
		c.t.Errorf("crictl %q: %v, %q; want a failure and %q", args, err, out, want)
	}
}

// decode reads one field of a JSON answer.
func (c *crictl) decode(text string, into any) {
	c.t.Helper()
	if err := json.Unmarshal([]byte(text), into); err != nil {
		c.t.Errorf("crictl printed %q: %v", text, err)
	}
}

func TestCrictl(t *testing.T) {
	n := start(t, "runc")
	c := newCrictl(t, n)
	pod := c.write("pod.json", `{"metadata": {"name": "web", "namespace": "default", "uid": "u", "attempt": 0}, "log_directory": "`+c.dir+`", "linux": {}}`)
	ctr := c.write("ctr.json", `{"metadata": {"name": "main"}, "image": {"image": "`+n.busybox+`"}, "log_path": "main.log", "stdin": true, "linux": {},
		"command": ["sh", "-c", "mkdir /www; echo page >/www/index.html; httpd -p 80 -h /www; echo ready; while read x; do echo $x; done; sleep 1000"]}`)

	c.run(`RuntimeName: +berth\n`, "version")
	c.run(`(?s)"runtimes".*"ociVersion"`, "info")
	c.run(`CGROUPFS|cgroupfs`, "runtime-config")
	c.run(``, "update-runtime-config")
	c.run(`sha256:`, "pull", n.busybox)
	c.run(`(?m)/busybox +1 +[0-9a-f]{13} `, "images")
	c.run(`"diff_ids"`, "inspecti", n.busybox)
	c.run(`"usedBytes"`, "imagefsinfo")

	podID := c.run(`^[0-9a-f]{64}\n$`, "runp", pod)
	c.run(`(?m)^`+podID[:13]+` .* Ready +web `, "pods")
	id := c.run(`^[0-9a-f]{64}\n$`, "create", podID, ctr, pod)
	c.run(`(?m)^`+id[:13]+` .* Created +main `, "ps", "-a")
	c.run(id, "start", id)
	c.run(`(?m)^`+id[:13]+` .* Running +main `, "ps")
	eventually(t, "the container is ready", func() bool {
		out, err := c.command("logs", id).Output()
		return err == nil && string(out) == "ready\n"
	})
	c.inspect(podID, id)
	c.stream(podID, id)

	c.run(id, "update", "--cpu-share", "77", id)
	c.run(`"cpuShares": "77"`, "inspect", id)
	c.run(`(?m)^`+id[:13]+` +main +`, "stats", "--seconds", "0")
	c.run(`(?m)^web +`+podID[:13], "statsp", "--seconds", "0")

	c.run(id, "stop", "--timeout", "1", id)
	c.run(`(?m)^`+id[:13]+` .* Exited +main `, "ps", "-a")
	c.run(id, "rm", id)
	c.run(podID, "stopp", podID)
	c.run(podID, "rmp", podID)
	c.run(`^[0-9a-f]{64}\n$`, "run", "--no-pull", ctr, pod)
	c.run(``, "rmp", "--all", "--force")
	c.run(`^POD ID[^\n]*\n$`, "pods")
	c.run(`Deleted`, "rmi", n.busybox)

	c.fails("not found", "inspect", id)
	c.fails("not found", "exec", id, "true")
	c.fails("no such image|not found", "rmi", "nobody/has:this")
}

// inspect looks at what is there only for people.
func (c *crictl) inspect(podID, id string) {
	c.t.Helper()
	var ctr struct {
		Info struct {
			Pid         int
			RuntimeSpec struct{ Process struct{ Args []string } }
			Steps       []struct{ Name, Took string }
		}
	}
	c.decode(c.run(``, "inspect", id), &ctr)
	if ctr.Info.Pid == 0 || len(ctr.Info.RuntimeSpec.Process.Args) != 3 || len(ctr.Info.Steps) < 3 {
		c.t.Errorf("crictl inspect: %+v", ctr)
	}
	var pod struct{ Info struct{ Pid int } }
	c.decode(c.run(``, "inspectp", podID), &pod)
	if pod.Info.Pid != ctr.Info.Pid {
		c.t.Errorf("crictl inspectp names pid %d, want that of the first container, %d", pod.Info.Pid, ctr.Info.Pid)
	}
}

// stream runs each kind of session over both transports.
func (c *crictl) stream(podID, id string) {
	c.t.Helper()
	c.run(`^out\n`, "exec", "--sync", id, "echo", "out")
	for _, transport := range []string{"spdy", "websocket"} {
		c.run(`^out\n$`, "exec", "--transport", transport, id, "echo", "out")
		c.fails(`exit code 42`, "exec", "--transport", transport, id, "sh", "-c", "exit 42")

		input := c.command("exec", "-i", "--transport", transport, id, "cat")
		input.Stdin = strings.NewReader("through\n")
		if out, err := input.Output(); err != nil || string(out) != "through\n" {
			c.t.Errorf("%s: exec -i: %q, %v", transport, out, err)
		}
		c.attach(transport, id)
	}
	// Over WebSocket crictl tunnels SPDY, which only the kubelet and the API server
	// unpack.
	c.portForward(podID)
}

// attach writes a line to the container and reads its answer.
func (c *crictl) attach(transport, id string) {
	c.t.Helper()
	cmd := c.command("attach", "-i", "--transport", transport, id)
	in, err := cmd.StdinPipe()
	if err != nil {
		c.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		c.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	want := transport + " attached\n"
	if _, err := io.WriteString(in, want); err != nil {
		c.t.Error(err)
	}
	got := make([]byte, len(want))
	if _, err := io.ReadFull(out, got); err != nil || string(got) != want {
		c.t.Errorf("%s: attached, the container answers %q, %v", transport, got, err)
	}
	end(c.t, cmd)
}

// portForward reads a page of the pod's.
func (c *crictl) portForward(podID string) {
	c.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		c.t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	l.Close()
	cmd := c.command("port-forward", podID, port+":80")
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	eventually(c.t, "the pod's page", func() bool {
		resp, err := http.Get("http://127.0.0.1:" + port)
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		page, err := io.ReadAll(resp.Body)
		return err == nil && string(page) == "page\n"
	})
	http.DefaultClient.CloseIdleConnections()
	end(c.t, cmd)
}

// end ends a crictl that would stay.
func end(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Process.Kill(); err != nil { // it stays at SIGTERM
		t.Error(err)
	}
	cmd.Wait() // its error is the signal
}
