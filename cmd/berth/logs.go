package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func logsCommand() *cobra.Command {
	var follow bool
	var tail int
	var since string
	out := &logPrinter{}
	cmd := &cobra.Command{
		Use:   "logs [flags] NAME",
		Short: "Show a container's output",
		Long: `Show a container's output, its standard error on this one's.

With -f, what comes is shown as well, across rotations of the log and restarts of
berthd, until the container has ended and all of its output was shown. Ctrl-C ends
the showing and nothing else.`,
		Example: `  berth logs -f web
  berth logs --tail 20 -t web
  berth logs --since 10m web
  berth logs --since 2026-11-24T12:00:00Z web`,
		Args:              usage(cobra.ExactArgs(1)),
		ValidArgsFunction: completeNames(anyContainer, 1),
		PreRunE: func(*cobra.Command, []string) (err error) {
			if out.since, err = parseSince(since, time.Now()); err != nil {
				return usageError{err}
			}
			return nil
		},
		RunE: withClient(func(ctx context.Context, cmd *cobra.Command, c *client, args []string) error {
			out.stdout, out.stderr = cmd.OutOrStdout(), cmd.ErrOrStderr()
			return c.logs(ctx, args[0], follow, tail, out)
		}),
	}
	f := cmd.Flags()
	f.BoolVarP(&follow, "follow", "f", false, "go on until the container has ended")
	f.IntVarP(&tail, "tail", "n", -1, "begin with the last `LINES`; -1: with all")
	f.StringVar(&since, "since", "", "leave out what is older than a `TIME` like 2026-11-24T12:00:00Z, or than 90s, 10m, 2h")
	f.BoolVarP(&out.timestamps, "timestamps", "t", false, "show the time of each line")
	return cmd
}

// parseSince reads a time, or how long before now it was. An empty text is the
// zero time.
func parseSince(text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if ago, err := time.ParseDuration(text); err == nil {
		return now.Add(-ago), nil
	}
	at, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return time.Time{}, fmt.Errorf("--since %q: write a time like 2026-11-24T12:00:00Z, or how long ago, like 10m", text)
	}
	return at, nil
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
		return fmt.Errorf("container %s keeps no log: who made it named no file for it", e.name())
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
	_, err = c.follow(ctx, id, log, out.print)
	if ctx.Err() != nil {
		return nil // Ctrl-C ends the showing: that is no failure
	}
	return err
}
