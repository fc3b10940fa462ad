// berth is the operator's tool: it runs, shows and removes pods and images of
// this node by hand. It speaks CRI and the admin service to berthd.
//
// Each command is a file. What can be wrong in it is kept apart from what it
// asks the daemon, and is pure: spec.go turns the options of run into CRI
// messages, table.go and progress.go turn messages into text, report.go into the
// JSON of -o json, and shown.go is between all that others wrote and the terminal.
//
// Read in this order: main.go, errors.go, client.go, find.go, then the commands;
// run.go, attend.go, follow.go and logfile.go belong together, and so do exec.go,
// attach.go, stream.go and terminal.go.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"berth/cri/admin"
)

func main() {
	signal.Ignore(syscall.SIGPIPE) // a write says so: what is to be cleaned up then is
	ctx, stop := untilSignal(context.Background())
	cmd, err := command().ExecuteContextC(ctx)
	stop()
	os.Exit(exitCode(os.Stderr, cmd, err))
}

// interrupted is the cause of a context that a signal has ended.
type interrupted struct {
	signal syscall.Signal
	again  <-chan os.Signal // those that come after it
}

func (i interrupted) Error() string { return fmt.Sprintf("ended by the signal %q", i.signal) }

// untilSignal ends the context at the first signal that asks the tool to end.
func untilSignal(parent context.Context) (ctx context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(parent)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	done := make(chan struct{})
	go func() {
		defer close(done)
		select {
		case s := <-signals:
			cancel(interrupted{s.(syscall.Signal), signals})
		case <-ctx.Done():
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		cancel(nil)
		<-done
	}
}

func command() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "berth",
		Short: "Run and look at containers of this node",
		Long: `berth runs, shows and removes the containers and images of this node by hand.

NAME in the commands below is the name of a container or of its pod, or the
beginning of an id that no other has.

The exit code is 0, 1 for what could not be done, 2 for a command line that cannot
be meant. run, exec and attach pass on the code of the container or command, and
have 125 for their own failures, 126 for a command that could not be started, and
127 for one that is not there.`,
		Example: `  berth run -it --rm busybox
  berth run -d --name web -p 8080:80 busybox httpd -f
  berth logs -f web
  berth exec -it web sh`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          usage(cobra.NoArgs),
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.CompletionOptions.DisableDefaultCmd = true // ours is for the shells that we try
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w: see `%s --help`", err, cmd.CommandPath())}
	})
	cmd.PersistentFlags().String("socket", admin.DefaultSocket, "`PATH` of berthd's unix socket")
	cmd.AddCommand(
		runCommand(), psCommand(), logsCommand(), execCommand(), attachCommand(), stopCommand(), rmCommand(),
		pullCommand(), imagesCommand(), rmiCommand(),
		inspectCommand(), statusCommand(), versionCommand(), completionCommand(),
	)
	return cmd
}

// usage makes the errors of a check of arguments usage errors: they show how the
// command is written.
func usage(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		err := check(cmd, args)
		switch {
		case err == nil:
			return nil
		case cmd.HasParent():
			err = fmt.Errorf("write `%s`: see `%s --help`", cmd.UseLine(), cmd.CommandPath())
		default: // a command that there is not
			err = fmt.Errorf("%w: see `%s --help`", err, cmd.CommandPath())
		}
		return usageError{err}
	}
}
