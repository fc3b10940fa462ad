package cri

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/cri/admin"
	"berth/sandbox"
)

// maxOutput is how many bytes of stdout and stderr together ExecSync returns:
// what one message can hold, with room for its other fields.
const maxOutput = admin.MaxMessage - 1<<10

// ExecSync runs a command in a container and returns its output and exit code.
// After the request's timeout in seconds (0: never) the command is killed with
// all that it has started and the code is DeadlineExceeded: the only one that the
// kubelet takes as a probe's timeout. Output beyond what a message holds is
// dropped and the command goes on.
func (s *Server) ExecSync(ctx context.Context, req *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
	timeout, err := seconds("timeout", req.GetTimeout())
	if err != nil {
		return nil, err
	}
	ctr, err := s.container(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	execCtx := ctx
	if timeout > 0 {
		var cancel context.CancelFunc
		execCtx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	out := &output{left: maxOutput}
	code, err := ctr.Exec(execCtx, sandbox.Exec{
		Cmd:    req.GetCmd(),
		Stdout: out.writer(&out.stdout),
		Stderr: out.writer(&out.stderr),
		Whole:  true,
	})
	stdout, stderr := out.finish()
	switch {
	case err != nil && execCtx.Err() != nil && ctx.Err() == nil:
		said := fmt.Sprintf("command timed out after %v and was killed", timeout)
		if loose := new(sandbox.LooseError); errors.As(err, &loose) {
			said += "; " + loose.Error()
		}
		return nil, status.Error(codes.DeadlineExceeded, said)
	case err != nil:
		return nil, err
	}
	return &runtimeapi.ExecSyncResponse{Stdout: stdout, Stderr: stderr, ExitCode: int32(code)}, nil
}

// output collects the first bytes of two streams that share one limit.
type output struct {
	mu             sync.Mutex
	left           int // bytes that are still taken
	stdout, stderr bytes.Buffer
}

// writer returns a stream of o that is collected in buf. Its Write never fails:
// a command must not notice that nobody keeps its output.
func (o *output) writer(buf *bytes.Buffer) io.Writer { return &stream{o, buf} }

// finish returns what was collected. Nothing written later is kept.
func (o *output) finish() (stdout, stderr []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.left = 0
	return o.stdout.Bytes(), o.stderr.Bytes()
}

type stream struct {
	out *output
	buf *bytes.Buffer // guarded by out.mu
}

func (s *stream) Write(p []byte) (int, error) {
	s.out.mu.Lock()
	defer s.out.mu.Unlock()
	kept := p[:min(len(p), s.out.left)]
	s.out.left -= len(kept)
	s.buf.Write(kept)
	return len(p), nil
}
