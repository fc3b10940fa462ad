//go:build node

package node

import (
	"context"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"
)

// patience bounds waits for what takes a moment; what waits for the kubelet's
// own periods says how long.
const patience = 30 * time.Second

// program is one of the node's processes, with all that it prints in a file.
type program struct {
	path string
	args []string
	log  string
	cmd  *exec.Cmd // nil while it does not run
}

func (p *program) start(t *testing.T) {
	t.Helper()
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(p.path, p.args...)
	cmd.Env = append(os.Environ(), "OTEL_TRACES_EXPORTER=none") // the registry's default sends traces
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p.cmd = cmd
}

// end sends the signal and waits for what it does.
func (p *program) end(t *testing.T, signal syscall.Signal) {
	t.Helper()
	if p.cmd == nil {
		return
	}
	if err := p.cmd.Process.Signal(signal); err != nil {
		t.Error(err)
	}
	overdue := time.AfterFunc(patience, func() { p.cmd.Process.Kill() })
	defer overdue.Stop()
	if err := p.cmd.Wait(); err != nil && signal != syscall.SIGKILL {
		t.Errorf("%s ended with %v", p.path, err)
	}
	p.cmd = nil
}

// tail is the end of what it has printed.
func (p *program) tail() string {
	text, _ := os.ReadFile(p.log)
	return string(text[max(0, len(text)-16<<10):])
}

// within asks until it is true, and fails t when that takes longer than limit.
func within(t *testing.T, limit time.Duration, what string, ask func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), limit)
	defer cancel()
	again := time.NewTicker(100 * time.Millisecond)
	defer again.Stop()
	for !ask() {
		select {
		case <-again.C:
		case <-ctx.Done():
			t.Fatalf("not in %v: %s", limit, what)
		}
	}
}
