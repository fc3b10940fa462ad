// berth is the operator's tool: it runs, shows and removes pods and images of
// this node by hand. It speaks CRI and the admin service to berthd.
//
// Each command is a file. What can be wrong in it is kept apart from what it
// asks the daemon: spec.go turns the options of run into CRI messages, table.go
// turns CRI messages into text, and both are pure.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/status"

	"berth/cri/admin"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	err := command().ExecuteContext(ctx)
	stop()
	os.Exit(exitCode(err))
}

// usageError is a command line that cannot be meant; the exit code is 2.
type usageError struct{ error }

// codeError ends the tool with the exit code of a container or of a command in
// one. There is nothing to print: it has said itself what it had to say.
type codeError int

func (e codeError) Error() string { return fmt.Sprintf("exited with code %d", int(e)) }

// exitCode prints err and returns what to exit with: 0, 1, 2 for a wrong
// command line, or the code that a container ended with.
func exitCode(err error) int {
	if err == nil {
		return 0
	}
	if code := codeError(0); errors.As(err, &code) {
		return int(code)
	}
	fmt.Fprintf(os.Stderr, "berth: %s\n", message(err))
	if usage := (usageError{}); errors.As(err, &usage) {
		return 2
	}
	return 1
}

// message is err without what gRPC puts around the daemon's own words.
func message(err error) string {
	var daemons interface{ GRPCStatus() *status.Status }
	if errors.As(err, &daemons) {
		return daemons.GRPCStatus().Message()
	}
	return err.Error()
}

func command() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "berth",
		Short: "Run and look at containers of this node",
		Long: `berth runs, shows and removes the containers and images of this node by hand.

NAME in the commands below is the name of a container or of its pod, or the
beginning of an id that no other has.`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          usage(cobra.NoArgs),
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.CompletionOptions.DisableDefaultCmd = true
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	cmd.PersistentFlags().String("socket", admin.DefaultSocket, "`PATH` of berthd's unix socket")
	cmd.AddCommand(
		runCommand(), psCommand(), logsCommand(), execCommand(), stopCommand(), rmCommand(),
		pullCommand(), imagesCommand(), statusCommand(), versionCommand(),
	)
	return cmd
}

// usage makes the errors of a check of arguments usage errors.
func usage(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return usageError{fmt.Errorf("%w: see %s --help", err, cmd.CommandPath())}
		}
		return nil
	}
}
