// berthd is Berth's daemon: it serves CRI and holds all policy. This package is
// flags and configuration, turned into plain structs for run.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"k8s.io/klog/v2"

	"berth/cri/admin"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	err := command().ExecuteContext(ctx)
	stop()
	klog.Flush()
	if err != nil {
		fmt.Fprintf(os.Stderr, "berthd: %v\n", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use:   "berthd",
		Short: "Berth's daemon: runs the pods of a Kubernetes node (CRI v1)",
		Long: `berthd serves CRI v1 to the kubelet and crictl, and Berth's own commands to berth.

It may be stopped and started again at any moment: containers run on.`,
		Version:       admin.Version,
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := load(path)
			if err != nil {
				return err
			}
			return run(cmd.Context(), c, path)
		},
	}
	cmd.CompletionOptions.DisableDefaultCmd = true
	cmd.Flags().StringVar(&path, "config", "", "configuration file (default "+defaultPath+", which may be missing)")
	logFlags := flag.NewFlagSet("klog", flag.ContinueOnError)
	klog.InitFlags(logFlags)
	for _, name := range []string{"v", "vmodule"} {
		cmd.Flags().AddGoFlag(logFlags.Lookup(name))
	}
	cmd.AddCommand(configCommand())
	return cmd
}

func configCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "config", Short: "Show and check the configuration"}
	cmd.AddCommand(
		&cobra.Command{
			Use:   "default",
			Short: "Print the default configuration, with every key explained",
			Args:  cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				_, err := cmd.OutOrStdout().Write(defaultTOML)
				return err
			},
		},
		&cobra.Command{
			Use:   "check [FILE]",
			Short: "Say what is wrong with a configuration file (default " + defaultPath + ")",
			Args:  cobra.MaximumNArgs(1),
			RunE: func(_ *cobra.Command, args []string) error {
				path := ""
				if len(args) == 1 {
					path = args[0]
				}
				_, err := load(path)
				return err
			},
		},
	)
	return cmd
}
