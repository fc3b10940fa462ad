package cri

import (
	"context"
	"errors"
	"strings"
	"syscall"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"berth/cri/admin"
	"berth/image"
	"berth/sandbox"
)

// errorTable is the one place where errors become gRPC codes. The first row
// whose error is in the chain counts; an error without a row is Unknown.
//
// The kubelet tells only some codes apart: NotFound (the object is gone),
// DeadlineExceeded (of ExecSync: a probe timed out), Unimplemented, and Unknown
// with a text that begins with a word it knows.
var errorTable = []struct {
	err    error
	code   codes.Code
	prefix string // put before the error's text
}{
	{sandbox.ErrPreempted, codes.Aborted, ""},
	{sandbox.ErrClosed, codes.Unavailable, ""},
	{sandbox.ErrInterrupted, codes.Unavailable, ""},
	{sandbox.ErrImageMount, codes.Unknown, "ImageVolumeMountFailed: "},
	{sandbox.ErrNoProgram, codes.Unknown, ""}, // NotFound would be said of the container
	// Before the context errors: a registry that does not answer often ends in
	// one, but not of the caller's context.
	{image.ErrRegistryUnavailable, codes.Unknown, "RegistryUnavailable: "},
	{image.ErrNotFound, codes.NotFound, ""},
	{image.ErrUnauthorized, codes.Unauthenticated, ""},
	{image.ErrInvalidReference, codes.InvalidArgument, ""},
	// The call was right, and trying again is no use until somebody has changed
	// the image, or the node.
	{image.ErrInvalidImage, codes.FailedPrecondition, ""},
	{image.ErrNotSupported, codes.FailedPrecondition, ""}, // Unimplemented would be said of the RPC
	{syscall.ENOSPC, codes.ResourceExhausted, ""},
	{sandbox.ErrListFull, codes.ResourceExhausted, ""},
	{image.ErrListFull, codes.ResourceExhausted, ""},
	{sandbox.ErrNotFound, codes.NotFound, ""},
	{sandbox.ErrNotReady, codes.FailedPrecondition, ""},
	{sandbox.ErrNotRunning, codes.FailedPrecondition, ""},
	{sandbox.ErrNotSupported, codes.FailedPrecondition, ""},
	{sandbox.ErrIllegal, codes.FailedPrecondition, ""},
	{context.DeadlineExceeded, codes.DeadlineExceeded, ""},
	{context.Canceled, codes.Canceled, ""},
}

// maxText bounds the text of an error, in bytes. It may quote what a client has
// sent, and goes into logs and events.
const maxText = 2 << 10

// clip leaves the beginning of a text that is too long, which says what failed,
// and the end, which says why.
func clip(text string) string {
	if len(text) <= maxText {
		return text
	}
	const gap = " … "
	half := (maxText - len(gap)) / 2
	return strings.ToValidUTF8(text[:half], "") + gap + strings.ToValidUTF8(text[len(text)-half:], "")
}

// toStatus returns err as a gRPC status, nil for nil. When the call's own ctx
// has ended, that is the reason, wherever the error came from.
func toStatus(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if end := ctx.Err(); end != nil {
		return status.Error(status.FromContextError(end).Code(), clip(err.Error()))
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	if invalid := (*sandbox.InvalidError)(nil); errors.As(err, &invalid) {
		return status.Error(codes.InvalidArgument, clip(err.Error()))
	}
	for _, row := range errorTable {
		if errors.Is(err, row.err) {
			return withDetail(status.New(row.code, clip(row.prefix+err.Error())), err)
		}
	}
	return status.Error(codes.Unknown, clip(err.Error()))
}

// withDetail adds what no code says, for berth.
func withDetail(s *status.Status, err error) error {
	if errors.Is(err, sandbox.ErrNoProgram) {
		if told, err := s.WithDetails(wrapperspb.String(admin.NoProgram)); err == nil {
			return told.Err()
		}
	}
	return s.Err()
}

// required returns an InvalidError naming field if value is empty.
func required(field, value string) error {
	if value == "" {
		return &sandbox.InvalidError{Field: field, Reason: "is required"}
	}
	return nil
}

// namedImage is an error of package image for the field that holds the
// reference.
func namedImage(field string, err error) error {
	if errors.Is(err, image.ErrInvalidReference) {
		return &sandbox.InvalidError{Field: field, Reason: err.Error(), Err: err}
	}
	return err
}

// ignoreNotFound is for the verbs that succeed on what does not exist.
func ignoreNotFound(err error) error {
	if errors.Is(err, sandbox.ErrNotFound) {
		return nil
	}
	return err
}
