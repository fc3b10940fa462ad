package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func execCommand() *cobra.Command {
	var timeout int
	cmd := &cobra.Command{
		Use:   "exec [flags] NAME COMMAND [ARG…]",
		Short: "Run a command in a running container",
		Long: `Run a command in a running container. Its output is shown when it has ended, up to
16 MiB of it; the exit code is the command's.`,
		Example: "  berth exec web cat /etc/hosts",
		Args:    usage(cobra.MinimumNArgs(2)),
		RunE: withClient(func(ctx context.Context, cmd *cobra.Command, c *client, args []string) error {
			if timeout < 0 {
				return usageError{errors.New("--timeout must not be negative")}
			}
			return c.exec(ctx, cmd, args[0], &runtimeapi.ExecSyncRequest{Cmd: args[1:], Timeout: int64(timeout)})
		}),
	}
	cmd.Flags().SetInterspersed(false) // flags after NAME are the command's
	cmd.Flags().IntVar(&timeout, "timeout", 0, "`SECONDS` after which the command is killed; 0: never")
	return cmd
}

func (c *client) exec(ctx context.Context, cmd *cobra.Command, ref string, req *runtimeapi.ExecSyncRequest) error {
	e, err := c.findContainer(ctx, ref)
	if err != nil {
		return err
	}
	req.ContainerId = e.container.GetId()
	resp, err := c.runtime.ExecSync(ctx, req)
	if status.Code(err) == codes.FailedPrecondition {
		return errors.New(message(err) + ": `berth ps -a` shows its state")
	}
	if err != nil {
		return err
	}
	if _, err := cmd.OutOrStdout().Write(resp.GetStdout()); err != nil {
		return err
	}
	if _, err := cmd.ErrOrStderr().Write(resp.GetStderr()); err != nil {
		return err
	}
	if resp.GetExitCode() != 0 {
		return codeError(resp.GetExitCode())
	}
	return nil
}
