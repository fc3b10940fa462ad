package cri

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/cri/admin"
	"berth/oci"
	"berth/test/expect"
)

func TestOutputKeepsStreamsApart(t *testing.T) {
	o := &output{left: maxOutput}
	stdout, stderr := o.writer(&o.stdout), o.writer(&o.stderr)
	io.WriteString(stdout, "a")
	io.WriteString(stderr, "x")
	io.WriteString(stdout, "b")
	if out, err := o.finish(); string(out) != "ab" || string(err) != "x" {
		t.Errorf("stdout %q, stderr %q", out, err)
	}
	io.WriteString(stdout, "late")
	if out, _ := o.finish(); string(out) != "ab" {
		t.Errorf("a late write was kept: %q", out)
	}
}

func TestOutputSharesOneLimit(t *testing.T) {
	o := &output{left: 10}
	for _, w := range []io.Writer{o.writer(&o.stdout), o.writer(&o.stderr), o.writer(&o.stdout)} {
		if n, err := io.WriteString(w, "1234567"); n != 7 || err != nil {
			t.Fatalf("a write was not taken whole: %d, %v", n, err)
		}
	}
	if out, err := o.finish(); string(out) != "1234567" || string(err) != "123" {
		t.Errorf("stdout %q, stderr %q", out, err)
	}
}

// What a flood on both streams leaves is one message that may be sent, and no
// more memory than a buffer that grew to it.
func TestFloodFitsIntoOneMessage(t *testing.T) {
	o := &output{left: maxOutput}
	var flood sync.WaitGroup
	for _, w := range []io.Writer{o.writer(&o.stdout), o.writer(&o.stderr)} {
		flood.Go(func() {
			io.Copy(w, io.LimitReader(zeros{}, 4*admin.MaxMessage))
		})
	}
	flood.Wait()
	stdout, stderr := o.finish()
	if n := len(stdout) + len(stderr); n != maxOutput {
		t.Errorf("%d bytes were kept of a flood, want %d", n, maxOutput)
	}
	if n := cap(stdout) + cap(stderr); n > 4*admin.MaxMessage {
		t.Errorf("the buffers grew to %d bytes", n)
	}
	resp := &runtimeapi.ExecSyncResponse{Stdout: stdout, Stderr: stderr, ExitCode: math.MinInt32}
	if n := proto.Size(resp); n > admin.MaxMessage {
		t.Errorf("the response has %d bytes, more than a message", n)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

func TestSeconds(t *testing.T) {
	for _, test := range []struct {
		n    int64
		want time.Duration
	}{
		{0, 0}, {10, 10 * time.Second}, {math.MaxInt64, math.MaxInt64}, {math.MaxInt64/int64(time.Second) + 1, math.MaxInt64},
	} {
		if got, err := seconds("timeout", test.n); got != test.want || err != nil {
			t.Errorf("seconds(%d) = %v, %v; want %v", test.n, got, err, test.want)
		}
	}
	if _, err := seconds("timeout", -1); err == nil || !strings.Contains(err.Error(), "timeout") {
		t.Errorf("a negative timeout: %v", err)
	}
}

func TestExecSync(t *testing.T) {
	n := newNode(t)
	_, id := n.startContainer(t, "web")
	n.runtime.exec = func(_ context.Context, e oci.Exec) (int, error) {
		fmt.Fprint(e.Stdout, "out:", strings.Join(e.Process.Args, " "))
		fmt.Fprint(e.Stderr, "err")
		return 3, nil
	}
	resp := must[*runtimeapi.ExecSyncResponse](t)(n.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"a", "b"}}))
	if string(resp.GetStdout()) != "out:a b" || string(resp.GetStderr()) != "err" || resp.GetExitCode() != 3 {
		t.Errorf("answered %q, %q, %d", resp.GetStdout(), resp.GetStderr(), resp.GetExitCode())
	}
}

// The kubelet takes only DeadlineExceeded as a probe's timeout, and only the
// request's own timeout must become one.
func TestExecSyncTimeout(t *testing.T) {
	n := newNode(t)
	_, id := n.startContainer(t, "web")
	killed := false
	n.runtime.exec = func(ctx context.Context, _ oci.Exec) (int, error) {
		<-ctx.Done()
		killed = true
		return 0, fmt.Errorf("exec: %w", ctx.Err())
	}
	_, err := n.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"sleep", "9"}, Timeout: 1})
	expect.Code(t, "a command that takes too long", err, codes.DeadlineExceeded, "timed out after 1s")
	if !killed {
		t.Error("the command was not ended")
	}
	n.runtime.exec = func(context.Context, oci.Exec) (int, error) { return 0, errors.New("no such file") }
	_, err = n.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"frob"}, Timeout: 60})
	expect.Code(t, "a command that is not there", err, codes.Unknown, "no such file")
}

func TestExecSyncFlood(t *testing.T) {
	n := newNode(t)
	_, id := n.startContainer(t, "web")
	n.runtime.exec = func(_ context.Context, e oci.Exec) (int, error) {
		chunk := []byte(strings.Repeat("y\n", 32<<10))
		for range 5 * admin.MaxMessage / len(chunk) {
			if _, err := e.Stdout.Write(chunk); err != nil {
				return 0, err
			}
		}
		return 0, nil
	}
	resp := must[*runtimeapi.ExecSyncResponse](t)(n.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"yes"}}))
	if got := len(resp.GetStdout()); got != maxOutput {
		t.Errorf("%d bytes came back, want %d", got, maxOutput)
	}
}
