package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"syscall"
	"time"

	"oras.land/oras-go/v2/registry/remote/errcode"
)

// Errors that callers tell apart.
var (
	// ErrNotFound: the registry has no such image or blob.
	ErrNotFound = errors.New("image not found")
	// ErrUnauthorized: the registry refused the credential, or asked for one
	// where none was given, or wanted it sent where it must not go.
	ErrUnauthorized = errors.New("not authorized by the registry")
	// ErrUnavailable: the registry could not be reached, did not answer in
	// time, or answered with a server error.
	ErrUnavailable = errors.New("registry is unavailable")
)

// errStalled is the cause of a request that Timeout ended.
var errStalled = errors.New("no progress")

// maxErrorBody bounds what is read of an error answer.
const maxErrorBody = 8 << 10

// statusError turns an answer that is no success into an error, and reads and
// closes its body.
func statusError(resp *http.Response) error {
	defer resp.Body.Close()
	var body struct {
		Errors errcode.Errors `json:"errors"`
	}
	said := resp.Status
	data, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	if json.Unmarshal(data, &body) == nil && len(body.Errors) > 0 {
		said += ": " + body.Errors.Error()
	}
	what := fmt.Sprintf("%s %s: %s", resp.Request.Method, resp.Request.URL.Redacted(), said)
	switch code := resp.StatusCode; {
	case code == http.StatusNotFound:
		return fmt.Errorf("%w: %s", ErrNotFound, what)
	case code == http.StatusUnauthorized, code == http.StatusForbidden:
		return fmt.Errorf("%w: %s", ErrUnauthorized, what)
	case code >= 500, code == http.StatusTooManyRequests, code == http.StatusRequestTimeout:
		return &temporaryError{fmt.Errorf("%w: %s", ErrUnavailable, what)}
	}
	return fmt.Errorf("unexpected answer of the registry: %s", what)
}

// requestError names what went wrong with a request that got no answer. What
// never reached the wire is the token flow's own refusal.
func requestError(ctx context.Context, err error) error {
	var wire *url.Error
	var answer *errcode.ErrorResponse
	switch {
	case ended(ctx) != nil, errors.Is(err, errStalled):
		return transportError(ctx, err)
	case errors.Is(err, errForeign):
		return fmt.Errorf("%w: %w", ErrUnauthorized, err)
	case errors.As(err, &wire):
		return transportError(ctx, err)
	case errors.As(err, &answer) && (answer.StatusCode >= 500 || answer.StatusCode == http.StatusTooManyRequests):
		return &temporaryError{fmt.Errorf("%w: token server: %w", ErrUnavailable, err)}
	}
	return fmt.Errorf("%w: %w", ErrUnauthorized, err)
}

// transportError names what went wrong on the wire. The caller's own deadline
// and cancellation come first: they are not the registry's fault.
func transportError(ctx context.Context, err error) error {
	if err := ended(ctx); err != nil {
		return err
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}

// ended tells whether the caller's context is over. A deadline may have made a
// dial fail a moment before the context says so itself.
func ended(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if t, ok := ctx.Deadline(); ok && !time.Now().Before(t) {
		return context.DeadlineExceeded
	}
	return nil
}

// temporaryError marks an answer after which the same request may succeed.
type temporaryError struct{ err error }

func (e *temporaryError) Error() string { return e.err.Error() }
func (e *temporaryError) Unwrap() error { return e.err }

// temporary tells whether trying again makes sense: after a server error, or a
// connection that broke. A refused connection, an unknown host and a timeout
// that has already been waited for are final: the kubelet tries again itself.
func temporary(err error) bool {
	var t *temporaryError
	return errors.As(err, &t) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) ||
		errors.Is(err, syscall.ECONNRESET)
}
