package runner

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"berth/oci/cgroup"
	"berth/oci/keeper"
)

// askTimeout bounds a runtime that is asked what it knows, or told to forget it.
const askTimeout = 10 * time.Second

// find looks for what a command has left that ended without telling a pid, as it
// was killed or its machine was too full. A program that has begun is made known by
// its pid file. One that has not is undone: the command may be begun again.
// unclear says why neither can be told.
func (r *runner) find(c Run, path string, killed bool) (unclear string, err error) {
	if c.State == "" { // an exec: its runtime keeps nothing of it
		if killed {
			return "its runtime hung and was killed", nil
		}
		return "", nil
	}
	if _, err := os.Lstat(c.State); errors.Is(err, os.ErrNotExist) {
		return "", nil // the runtime begins with that, and removes it when it fails
	}
	st, err := c.state()
	switch {
	case err == nil && (st.Status == "created" || st.Status == "creating") && !c.executed(st.Pid):
	case err == nil && st.Pid > 0 && st.Status != "stopped":
		return "", os.WriteFile(filepath.Join(c.Dir, keeper.PidFile), []byte(strconv.Itoa(st.Pid)), 0o600)
	case err == nil:
		return "its runtime was killed while it started the program, whose process has ended", nil
	case !onlyRuntimes(path, c.Argv[0]):
		return fmt.Sprintf("its runtime was killed while it started the program, and does not know it: %v", err), nil
	}
	return "", r.undo(c, path)
}

// runtimeState is what `state` of an OCI runtime prints.
type runtimeState struct {
	Status string `json:"status"`
	Pid    int    `json:"pid"`
}

// state asks the runtime for the container.
func (c Run) state() (st runtimeState, err error) {
	out, err := c.ask("state", c.ID)
	if err == nil {
		err = json.Unmarshal(out, &st)
	}
	return st, err
}

// undo removes what a command has left that has begun no program.
func (r *runner) undo(c Run, path string) error {
	_, askErr := c.ask("delete", "--force", c.ID)
	ctx, cancel := context.WithTimeout(context.Background(), killTimeout)
	defer cancel()
	if err := end(ctx, path); err != nil {
		return errors.Join(err, askErr)
	}
	r.dropScratch(c.Dir)
	return os.RemoveAll(c.State) // of a runtime that does not know its own
}

// ask runs a short command of the runtime and returns what it prints.
func (c Run) ask(args ...string) ([]byte, error) {
	var out, errs bytes.Buffer
	cmd := exec.Command(c.Argv[0], append([]string{"--root", filepath.Dir(c.State)}, args...)...)
	cmd.Env, cmd.Dir = []string{"PATH=" + os.Getenv("PATH")}, "/"
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := spawn(cmd, 0); err != nil {
		return nil, err
	}
	timer := time.AfterFunc(askTimeout, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	if err := cmd.Wait(); err != nil {
		said := errs.Bytes()
		return nil, fmt.Errorf("%s: %w: %s", args[0], err, bytes.TrimSpace(said[max(0, len(said)-stderrKept):]))
	}
	return out.Bytes(), nil
}

// executed reports that the container's first process has executed the program.
// The runtime notes that a moment after it.
func (c Run) executed(pid int) bool {
	var spec struct{ Process struct{ Args []string } }
	b, err := os.ReadFile(filepath.Join(c.Dir, "config.json"))
	if err != nil || json.Unmarshal(b, &spec) != nil {
		return false
	}
	return string(cmdline(pid)) == strings.Join(spec.Process.Args, "\x00")+"\x00"
}

// onlyRuntimes reports that no process of a cgroup has executed a program.
func onlyRuntimes(path, runtime string) bool {
	pids, err := cgroup.Procs(path)
	for _, pid := range pids {
		name, _, _ := bytes.Cut(cmdline(pid), []byte{0})
		if filepath.Base(string(name)) != filepath.Base(runtime) {
			return false
		}
	}
	return err == nil
}

func cmdline(pid int) []byte {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return b
}
