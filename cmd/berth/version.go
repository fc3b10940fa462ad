package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/cri/admin"
)

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Show the versions of berth and berthd",
		Args:  usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, args []string) error {
			fmt.Fprintf(cmd.OutOrStdout(), "berth   %s\n", admin.Version)
			return withClient(showDaemonVersion)(cmd, args)
		},
	}
}

func showDaemonVersion(ctx context.Context, cmd *cobra.Command, c *client, _ []string) error {
	v, err := c.runtime.Version(ctx, &runtimeapi.VersionRequest{})
	if err != nil {
		return err
	}
	fmt.Fprintf(cmd.OutOrStdout(), "%sd  %s (CRI %s)\n", v.GetRuntimeName(), v.GetRuntimeVersion(), v.GetRuntimeApiVersion())
	return nil
}
