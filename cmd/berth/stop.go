package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func stopCommand() *cobra.Command {
	var grace int
	cmd := &cobra.Command{
		Use:   "stop [flags] NAME…",
		Short: "Stop containers and their pods",
		Long: `Stop containers and their pods. A container gets its stop signal, usually SIGTERM,
and SIGKILL if it has not ended in time. Its log and exit code stay until rm.`,
		Example:           "  berth stop web\n  berth stop -t 60 db",
		Args:              usage(cobra.MinimumNArgs(1)),
		ValidArgsFunction: completeNames(runningContainer, 0),
		PreRunE: func(*cobra.Command, []string) error {
			if grace < 0 {
				return usageError{errors.New("-t must not be negative")}
			}
			return nil
		},
		RunE: withClient(func(ctx context.Context, cmd *cobra.Command, c *client, args []string) error {
			return c.each(ctx, args, func(e entry, ref string) error {
				if err := c.stop(ctx, e, time.Duration(grace)*time.Second); err != nil {
					return err
				}
				_ = say(cmd.OutOrStdout(), "%s", ref)
				return nil
			})
		}),
	}
	cmd.Flags().IntVarP(&grace, "time", "t", int(stopGrace/time.Second), "`SECONDS` to wait before killing")
	return cmd
}

// each does something with every entry that args name, also after one has
// failed.
func (c *client) each(ctx context.Context, args []string, do func(e entry, ref string) error) error {
	var failed []error
	for _, ref := range args {
		all, err := c.entries(ctx)
		if err != nil {
			return err
		}
		e, err := find(all, ref)
		if err != nil {
			failed = append(failed, err)
			continue
		}
		if err := do(e, ref); err != nil {
			failed = append(failed, fmt.Errorf("%s: %s", ref, message(err)))
		}
	}
	return errors.Join(failed...)
}

// stop stops the entry's container and then its pod.
func (c *client) stop(ctx context.Context, e entry, grace time.Duration) error {
	if e.container != nil {
		if err := c.stopContainer(ctx, e.container.GetId(), grace); err != nil {
			return err
		}
	}
	_, err := c.runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: e.pod.GetId()})
	return err
}

func (c *client) stopContainer(ctx context.Context, id string, grace time.Duration) error {
	_, err := c.runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: int64(grace / time.Second)})
	return err
}
