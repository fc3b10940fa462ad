package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

const (
	// searchPath is where plugins find the programs that they run.
	searchPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

	maxStdout = 1 << 20 // bytes of a result; libcni's largest are some KiB
	maxStderr = 4 << 10 // bytes of what is kept of a plugin's stderr: the last ones

	// drainTime is how long a process that left the plugin's group may hold its
	// output open after the plugin has ended.
	drainTime = time.Second
)

// pluginEnv are the variables that libcni sets and that a plugin gets. All else
// in libcni's environment is berthd's own.
var pluginEnv = []string{"CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS", "CNI_ARGS", "CNI_IFNAME", "CNI_PATH"}

// plugins runs CNI plugins for libcni; *plugins is an invoke.Exec.
type plugins struct {
	version.PluginDecoder
	searchPath string // PATH of the plugins
}

// FindInPath returns the path of a plugin's binary.
func (*plugins) FindInPath(plugin string, dirs []string) (string, error) {
	return findPlugin(plugin, dirs)
}

// ExecPlugin runs one plugin for one command and returns its stdout. Its error
// is a *pluginError.
func (p *plugins) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	env := []string{"PATH=" + p.searchPath}
	failed := &pluginError{Plugin: filepath.Base(path)}
	for _, kv := range environ {
		name, value, _ := strings.Cut(kv, "=")
		if slices.Contains(pluginEnv, name) {
			env = append(env, kv)
		}
		if name == "CNI_COMMAND" {
			failed.Command = value
		}
	}
	stdout, stderr, err := run(ctx, path, env, stdin)
	if err == nil {
		return stdout, nil
	}
	failed.Stderr, failed.Err = strings.TrimSpace(string(stderr)), err
	if json.Unmarshal(stdout, &failed.Reported) != nil && failed.Stderr == "" {
		failed.Stderr = tail(stdout) // it did not answer as a plugin does
	}
	return nil, failed
}

// A pluginError is one failed call of a plugin.
type pluginError struct {
	Plugin, Command string
	Reported        types.Error // what the plugin printed; zero if it printed no error
	Stderr          string
	Err             error // how the process ended
}

func (e *pluginError) Error() string {
	what := e.Err.Error()
	if e.Reported.Msg != "" {
		what = e.Reported.Msg
		if e.Reported.Details != "" {
			what += "; " + e.Reported.Details
		}
		if e.Reported.Code != 0 {
			what += fmt.Sprintf(" (code %d)", e.Reported.Code)
		}
	}
	if e.Stderr != "" {
		what += fmt.Sprintf(" (stderr: %q)", e.Stderr)
	}
	return fmt.Sprintf("plugin %s: %s: %s", e.Plugin, e.Command, what)
}

func (e *pluginError) Unwrap() error { return e.Err }

// plain takes a plugin's own error out of libcni's wrapping, which repeats it.
func plain(err error) error {
	var failed *pluginError
	if errors.As(err, &failed) {
		return failed
	}
	return err
}

// run runs a plugin in a session of its own. When it ends or ctx does,
// everything in its process group is killed: a plugin leaves no process behind
// by accident. Stdout over maxStdout is an error; of stderr the end is kept.
func run(ctx context.Context, path string, env []string, stdin []byte) (stdout, stderr []byte, err error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, context.Cause(ctx)
	}
	out, errOut := &head{max: maxStdout}, &ending{max: maxStderr}
	cmd := exec.Command(path)
	cmd.Env, cmd.Dir = env, "/"
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), out, errOut
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.WaitDelay = drainTime
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		awaitExit(cmd.Process.Pid)
	}()
	select {
	case <-ended:
	case <-ctx.Done():
		err = fmt.Errorf("killed: %w", context.Cause(ctx))
	}
	// Nobody has reaped it yet, so the group's id is not anybody else's.
	unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
	<-ended
	waited := cmd.Wait()
	switch {
	case err != nil:
	case errors.Is(waited, exec.ErrWaitDelay):
		klog.Warningf("%s left a process behind that holds its output open", path)
	case out.over:
		err = fmt.Errorf("printed more than %d bytes", maxStdout)
	case waited != nil:
		err = waited
	}
	return out.data, errOut.data, err
}

// awaitExit waits until a child has ended, and leaves it to be reaped.
func awaitExit(pid int) {
	for {
		var info unix.Siginfo
		err := unix.Waitid(unix.P_PID, pid, &info, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// A head keeps the first max bytes written to it. Then it takes no more, and who
// writes on gets SIGPIPE.
type head struct {
	max  int
	data []byte
	over bool
}

func (h *head) Write(p []byte) (int, error) {
	if room := h.max - len(h.data); len(p) > room {
		h.data, h.over = append(h.data, p[:room]...), true
		return room, io.ErrShortWrite
	}
	h.data = append(h.data, p...)
	return len(p), nil
}

// An ending keeps the last max bytes written to it.
type ending struct {
	max  int
	data []byte
}

func (e *ending) Write(p []byte) (int, error) {
	e.data = append(e.data, p...)
	if over := len(e.data) - e.max; over > 0 {
		e.data = append(e.data[:0], e.data[over:]...)
	}
	return len(p), nil
}

func tail(b []byte) string {
	return strings.TrimSpace(string(b[max(0, len(b)-maxStderr):]))
}
