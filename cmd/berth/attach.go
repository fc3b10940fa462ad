package main

import (
	"context"
	"errors"
	"strings"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// attachOptions is the command line of `berth attach`.
type attachOptions struct{ interactive, tty bool }

func attachCommand() *cobra.Command {
	o := &attachOptions{}
	cmd := &cobra.Command{
		Use:   "attach [flags] NAME",
		Short: "Connect to a running container's input and output",
		Long: `Connect to a running container: its output is shown from now on (berth logs shows
what came before), and it reads what is typed if it was run with -i. The exit code
is the container's when it ends meanwhile.

Ctrl-C ends the connection and not the container. With a terminal, Ctrl-C is the
container's, and Ctrl-P Ctrl-Q end the connection.

berth knows of the containers of berth run whether they have input and a terminal.
Of others, -i and -t say so.`,
		Example: `  berth run -dit --name box busybox
  berth attach box`,
		Annotations:       map[string]string{annotationCode: "yes"},
		Args:              usage(cobra.ExactArgs(1)),
		ValidArgsFunction: completeNames(runningContainer, 1),
		RunE:              withClient(o.attach),
	}
	f := cmd.Flags()
	f.BoolVarP(&o.interactive, "interactive", "i", false, "the container has input: pass standard input on to it")
	f.BoolVarP(&o.tty, "tty", "t", false, "the container has a terminal")
	return cmd
}

func (o *attachOptions) attach(ctx context.Context, cmd *cobra.Command, c *client, args []string) error {
	e, err := c.findRunning(ctx, args[0])
	if err != nil {
		return err
	}
	ran := e.container.GetAnnotations()[stdioAnnotation]
	interactive := o.interactive || strings.Contains(ran, "i")
	tty := o.tty || strings.Contains(ran, "t")
	id := e.container.GetId()
	err = c.attach(ctx, cmd, &runtimeapi.AttachRequest{ContainerId: id, Stdin: interactive, Stdout: true, Stderr: !tty, Tty: tty})
	switch {
	case errors.Is(err, errDetached):
		_ = say(cmd.ErrOrStderr(), "%s goes on: `berth attach %s` comes back to it", e.name(), args[0])
		return nil
	case err != nil:
		return err
	}
	status, err := c.follow(ctx, id, nil, nil)
	if err == nil && status.GetExitCode() != 0 {
		err = codeError(status.GetExitCode())
	}
	return err
}

// attach holds a session until the container ends, or the user leaves it.
func (c *client) attach(ctx context.Context, cmd *cobra.Command, req *runtimeapi.AttachRequest) (err error) {
	ctx, leave := context.WithCancelCause(ctx)
	defer leave(nil)
	keys := &keyboard{in: cmd.InOrStdin()}
	if req.GetTty() && req.GetStdin() {
		if keys.terminal, err = rawTerminal(keys.in); err != nil {
			return err
		}
		defer func() { keys.terminal.leave(cmd.ErrOrStderr(), err) }()
	}
	resp, err := c.runtime.Attach(ctx, req)
	if err != nil {
		return err
	}
	io, stop := keys.session(func() { leave(errDetached) })
	defer stop()
	io.out, io.tty = cmd.OutOrStdout(), req.GetTty()
	if !req.GetStdin() {
		io.in = nil
	}
	if req.GetStderr() {
		io.err = cmd.ErrOrStderr()
	}
	return io.converse(ctx, resp.GetUrl())
}
