package main

import (
	"context"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/cri/admin"
)

func versionCommand() *cobra.Command {
	var f format
	cmd := &cobra.Command{
		Use:     "version",
		Short:   "Show the versions of berth and berthd",
		Example: "  berth version\n  berth version -o json",
		Args:    usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, args []string) error {
			r := versionReport{Berth: admin.Version}
			unknown := withClient(r.ask)(cmd, args)
			w := cmd.OutOrStdout()
			if f == formatJSON {
				if err := writeJSON(w, r); err != nil {
					return err
				}
				return unknown
			}
			err := say(w, "berth   %s", r.Berth)
			if err == nil && r.Berthd != nil {
				err = say(w, "berthd  %s (CRI %s)", r.Berthd.Version, r.Berthd.CRI)
			}
			if err != nil {
				return err
			}
			return unknown
		},
	}
	addFormat(cmd, &f)
	return cmd
}

func (r *versionReport) ask(ctx context.Context, _ *cobra.Command, c *client, _ []string) error {
	v, err := c.runtime.Version(ctx, &runtimeapi.VersionRequest{})
	if err != nil {
		return err
	}
	r.Berthd = &daemonReport{Version: v.GetRuntimeVersion(), CRI: v.GetRuntimeApiVersion()}
	return nil
}
