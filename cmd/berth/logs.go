package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func logsCommand() *cobra.Command {
	var follow bool
	var tail int
	out := &logPrinter{}
	cmd := &cobra.Command{
		Use:   "logs [flags] NAME",
		Short: "Show a container's output",
		Args:  usage(cobra.ExactArgs(1)),
		RunE: withClient(func(ctx context.Context, cmd *cobra.Command, c *client, args []string) error {
			out.stdout, out.stderr = cmd.OutOrStdout(), cmd.ErrOrStderr()
			return c.logs(ctx, args[0], follow, tail, out)
		}),
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on until the container has ended")
	cmd.Flags().IntVarP(&tail, "tail", "n", -1, "begin with the last `LINES`; -1: with all")
	cmd.Flags().BoolVarP(&out.timestamps, "timestamps", "t", false, "show the time of each line")
	return cmd
}

func (c *client) logs(ctx context.Context, ref string, follow bool, tail int, out *logPrinter) error {
	e, err := c.findContainer(ctx, ref)
	if err != nil {
		return err
	}
	id := e.container.GetId()
	ctr, err := c.runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id})
	if err != nil {
		return err
	}
	if ctr.GetStatus().GetLogPath() == "" {
		return fmt.Errorf("container %s keeps no log", e.name())
	}
	log := &logReader{path: ctr.GetStatus().GetLogPath()}
	defer log.close()
	if err := log.begin(tail); err != nil {
		return err
	}
	if !follow {
		_, err := log.read(out.print)
		return err
	}
	_, err = c.follow(ctx, id, log, out)
	if ctx.Err() != nil {
		return nil // Ctrl-C ends the showing: that is no failure
	}
	return err
}

// How long follow waits before it looks again: it begins with the least and
// doubles that while nothing is written.
const (
	leastWait = 20 * time.Millisecond
	mostWait  = 400 * time.Millisecond
)

// follow prints a container's log until the container has ended, and returns
// its status then. It goes on while the daemon is restarted.
func (c *client) follow(ctx context.Context, id string, log *logReader, out *logPrinter) (*runtimeapi.ContainerStatus, error) {
	defer log.close()
	wait := leastWait
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		// First the state, then the log: a container is not EXITED before its
		// log is complete.
		resp, err := c.runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id})
		if err != nil && status.Code(err) != codes.Unavailable {
			return nil, err
		}
		if log.path == "" {
			log.path = resp.GetStatus().GetLogPath()
		}
		n, err := log.read(out.print)
		if err != nil {
			return nil, err
		}
		if state := resp.GetStatus().GetState(); resp != nil && state != runtimeapi.ContainerState_CONTAINER_RUNNING {
			return resp.GetStatus(), nil
		}
		if wait = min(2*wait, mostWait); n > 0 {
			wait = leastWait
		}
		timer.Reset(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}
