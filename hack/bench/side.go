package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// patience bounds every wait for a daemon: longer means broken.
const patience = time.Minute

// A side is one of the two that are compared.
type side struct {
	name     string
	dir      string   // its own; logs of pods are below it
	socket   string   // of its CRI
	args     []string // the daemon's command line
	env      []string // its environment; nil is ours
	programs []string // whose processes are the runtime's own, the daemon's first

	daemon *exec.Cmd // nil while it does not run
	conn   *grpc.ClientConn
	runtimeapi.RuntimeServiceClient
	pods int // made so far: the number of the next one
}

// start returns when the daemon answers Version, and says how long that took.
func (s *side) start(ctx context.Context) (time.Duration, error) {
	log, err := os.OpenFile(filepath.Join(s.dir, "daemon.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return 0, err
	}
	defer log.Close()
	s.daemon = exec.Command(s.args[0], s.args[1:]...)
	s.daemon.Env = s.env
	s.daemon.Stdout, s.daemon.Stderr = log, log
	s.daemon.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // out of the terminal's reach
	begin := time.Now()
	if err := s.daemon.Start(); err != nil {
		s.daemon = nil
		return 0, err
	}
	err = s.await(ctx, func(ctx context.Context) error {
		_, err := s.Version(ctx, &runtimeapi.VersionRequest{})
		return err
	})
	return time.Since(begin), err
}

// await asks until the answer is no error, each time over a connection of its own,
// so that no back-off of gRPC is measured. The last connection is kept.
func (s *side) await(ctx context.Context, ask func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	again := time.NewTicker(time.Millisecond)
	defer again.Stop()
	for {
		err := s.connect()
		if err == nil {
			err = ask(ctx)
		}
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s does not answer: %w", s.name, err)
		case <-again.C:
		}
	}
}

func (s *side) connect() error {
	s.disconnect()
	conn, err := grpc.NewClient("unix:"+s.socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20)))
	if err != nil {
		return err
	}
	s.conn, s.RuntimeServiceClient = conn, runtimeapi.NewRuntimeServiceClient(conn)
	return nil
}

func (s *side) disconnect() {
	if s.conn != nil {
		s.conn.Close()
		s.conn = nil
	}
}

// kill ends the daemon as a crash does.
func (s *side) kill() error {
	s.disconnect()
	err := s.daemon.Process.Kill()
	_ = s.daemon.Wait() // its error is the signal
	s.daemon = nil
	return err
}

// stop ends the daemon and then whatever it leaves when it has no pods.
func (s *side) stop(ctx context.Context) error {
	s.disconnect()
	if err := s.daemon.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	_ = s.daemon.Wait() // containerd has a code for being asked
	s.daemon = nil
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	again := time.NewTicker(time.Millisecond)
	defer again.Stop()
	asked := map[int]bool{}
	for {
		left, err := processes(s.programs...)
		if err != nil || len(left) == 0 {
			return err
		}
		for _, pid := range left {
			if asked[pid] {
				continue
			}
			asked[pid] = true
			if err := syscall.Kill(pid, syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s leaves processes: %v", s.name, left)
		case <-again.C:
		}
	}
}

func (s *side) pull(ctx context.Context, image string) error {
	_, err := runtimeapi.NewImageServiceClient(s.conn).PullImage(ctx,
		&runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: image}})
	return err
}

// lastWords is the end of the daemon's log.
func (s *side) lastWords() string {
	text, _ := os.ReadFile(filepath.Join(s.dir, "daemon.log"))
	return fmt.Sprintf("the end of the log of %s:\n%s", s.name, text[max(0, len(text)-2<<10):])
}
