package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"berth/cri/admin"
)

// Exit codes of the commands that pass on another's, as shells and Docker have
// them.
const (
	codeFailed    = 125 // berth or berthd could not do it
	codeNotBegun  = 126 // the command could not be started
	codeNoProgram = 127 // the command is not there
	codeSignal    = 128 // and the number of the signal that ended it
)

// usageError is a command line that cannot be meant; the exit code is 2.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// codeError ends the tool with the exit code of a container or of a command in
// one. There is nothing to print: it has said itself what it had to say.
type codeError int

func (e codeError) Error() string { return fmt.Sprintf("exited with code %d", int(e)) }

// notBegunError is the reason why a container or command did not start.
type notBegunError struct{ error }

func (e notBegunError) Unwrap() error { return e.error }

// noProgramError is a notBegunError of a program that is not there.
type noProgramError struct{ error }

func (e noProgramError) Unwrap() error { return e.error }

// notBegun makes the error of a call that was to start a container.
func notBegun(err error) error {
	for _, detail := range status.Convert(err).Details() {
		if said, ok := detail.(*wrapperspb.StringValue); ok && said.GetValue() == admin.NoProgram {
			return noProgramError{err}
		}
	}
	return notBegunError{err}
}

// exitCode prints err on w, one line for each thing that failed, and returns
// what to exit with after cmd.
func exitCode(w io.Writer, cmd *cobra.Command, err error) int {
	if err == nil {
		return 0
	}
	if code := codeError(0); errors.As(err, &code) {
		return int(code)
	}
	if errors.Is(err, syscall.EPIPE) { // whoever read our output has had enough
		return codeSignal + int(syscall.SIGPIPE)
	}
	signal := interrupted{}
	bySignal := errors.As(err, &signal)
	if bySignal && signal.signal == syscall.SIGINT && isTerminal(w) {
		fmt.Fprintln(w) // the terminal shows a ^C: the prompt begins a line
	}
	if !bySignal {
		for line := range strings.Lines(message(err)) {
			_ = say(w, "berth: %s", strings.TrimSpace(line))
		}
	}
	switch {
	case bySignal:
		return codeSignal + int(signal.signal)
	case errors.As(err, &noProgramError{}):
		return codeNoProgram
	case errors.As(err, &notBegunError{}):
		return codeNotBegun
	case passesCodeOn(cmd):
		return codeFailed
	case errors.As(err, &usageError{}):
		return 2
	default:
		return 1
	}
}

// passesCodeOn marks the commands whose exit codes are those of a container.
func passesCodeOn(cmd *cobra.Command) bool {
	return cmd != nil && cmd.Annotations[annotationCode] != ""
}

// annotationCode is the annotation that passesCodeOn looks for.
const annotationCode = "passes-code-on"

// message says what went wrong and what can be done. Of an error of the daemon
// it is the daemon's own words, without what gRPC puts around them.
func message(err error) string {
	var daemons interface{ GRPCStatus() *status.Status }
	if !errors.As(err, &daemons) {
		return err.Error()
	}
	s := daemons.GRPCStatus()
	// A registry, say, may have written in it: its line breaks begin no line of ours.
	words := shown(s.Message())
	switch s.Code() {
	case codes.Unavailable:
		return "berthd has ended or was restarted meanwhile: try again, or look at its log (" + words + ")"
	case codes.Unimplemented:
		return "this berthd is of another version than berth and does not know the command: compare them with `berth version`"
	case codes.Canceled:
		return "given up: " + words
	default:
		return words
	}
}

// ended is err, or the signal that ended ctx if err says no more than that.
func ended(ctx context.Context, err error) error {
	signal := interrupted{}
	if err == nil || !errors.As(context.Cause(ctx), &signal) {
		return err
	}
	if errors.Is(err, context.Canceled) || status.Code(err) == codes.Canceled {
		return signal
	}
	return err
}
