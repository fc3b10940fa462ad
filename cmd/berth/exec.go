package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// execOptions is the command line of `berth exec`.
type execOptions struct {
	interactive, tty bool
	timeout          int // seconds; 0: none
}

func execCommand() *cobra.Command {
	o := &execOptions{}
	cmd := &cobra.Command{
		Use:   "exec [flags] NAME COMMAND [ARG…]",
		Short: "Run a command in a running container",
		Long: `Run a command in a running container. Its output is shown as it comes, and the
exit code is the command's. Ctrl-C ends the command; with -it it is the command's.

The exit code is 125 if berth failed, 126 if the command could not be started, and
127 if it is not there.`,
		Example: `  berth exec web cat /etc/hosts
  berth exec -it web sh
  berth exec -i db sh -c 'cat >/tmp/dump' <dump`,
		Annotations:       map[string]string{annotationCode: "yes"},
		Args:              usage(cobra.MinimumNArgs(2)),
		ValidArgsFunction: completeNames(runningContainer, 1),
		PreRunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case o.timeout < 0:
				return usageError{errors.New("--timeout must not be negative")}
			case o.tty && !o.interactive:
				return usageError{errors.New("-t is of no use without -i: use -it")}
			case o.tty && !isTerminal(cmd.InOrStdin()):
				return errNoTerminal
			}
			return nil
		},
		RunE: withClient(o.exec),
	}
	f := cmd.Flags()
	f.SetInterspersed(false) // flags after NAME are the command's
	f.BoolVarP(&o.interactive, "interactive", "i", false, "pass standard input on to the command")
	f.BoolVarP(&o.tty, "tty", "t", false, "give the command a terminal (with -i)")
	f.IntVar(&o.timeout, "timeout", 0, "`SECONDS` after which the command is killed; 0: never")
	return cmd
}

func (o *execOptions) exec(ctx context.Context, cmd *cobra.Command, c *client, args []string) (err error) {
	e, err := c.findRunning(ctx, args[0])
	if err != nil {
		return err
	}
	if o.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, time.Duration(o.timeout)*time.Second,
			fmt.Errorf("the command was killed: it had not ended after %d s", o.timeout))
		defer cancel()
	}
	resp, err := c.runtime.Exec(ctx, &runtimeapi.ExecRequest{
		ContainerId: e.container.GetId(), Cmd: args[1:], Tty: o.tty,
		Stdin: o.interactive, Stdout: true, Stderr: !o.tty, // a terminal mixes the two
	})
	if err != nil {
		return err
	}
	io := stdio{out: cmd.OutOrStdout(), tty: o.tty}
	if o.interactive {
		io.in = cmd.InOrStdin()
	}
	if !o.tty {
		io.err = cmd.ErrOrStderr()
		return io.converse(ctx, resp.GetUrl())
	}
	if io.terminal, err = rawTerminal(io.in); err != nil {
		return err
	}
	defer func() { io.terminal.leave(cmd.ErrOrStderr(), err) }()
	sizes, stop := io.terminal.sizes()
	defer stop()
	io.resize = sizes
	return io.converse(ctx, resp.GetUrl())
}
