package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func rmCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "rm [flags] NAME…",
		Short: "Remove containers with their pods and logs",
		Long: `Remove containers with their pods and the logs that berth run kept. With -f, what
runs is killed.`,
		Example:           "  berth rm web\n  berth rm -f $(berth ps -aq)",
		Args:              usage(cobra.MinimumNArgs(1)),
		ValidArgsFunction: completeNames(anyEntry, 0),
		RunE: withClient(func(ctx context.Context, cmd *cobra.Command, c *client, args []string) error {
			return c.each(ctx, args, func(e entry, ref string) error {
				if e.running() && !force {
					return errors.New("is running: stop it first, or use -f")
				}
				if err := c.removePod(ctx, e.pod.GetId(), e.logDir()); err != nil {
					return err
				}
				_ = say(cmd.OutOrStdout(), "%s", ref)
				return nil
			})
		}),
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "kill what is running")
	return cmd
}

// logDir is the log directory that run made for the pod; empty if another
// client made the pod, whose logs are not ours.
func (e entry) logDir() string {
	if name := e.pod.GetMetadata().GetName(); e.byHand() && validName.MatchString(name) {
		return filepath.Join(podLogs, name)
	}
	return ""
}

// removePod removes a pod with its containers and, unless logDir is empty, its
// logs.
func (c *client) removePod(ctx context.Context, id, logDir string) error {
	if _, err := c.runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: id}); err != nil {
		return err
	}
	if _, err := c.runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id}); err != nil {
		return err
	}
	if logDir == "" {
		return nil
	}
	if err := os.RemoveAll(logDir); err != nil {
		return fmt.Errorf("remove logs: %w", err)
	}
	return nil
}
