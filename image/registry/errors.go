package registry

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"
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

// maxErrorBody bounds what is read of an error answer.
const maxErrorBody = 8 << 10

// statusError turns an answer that is no success into an error, and reads and
// closes its body.
func statusError(resp *http.Response) error {
	defer resp.Body.Close()
	data, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	what := strings.TrimSpace(fmt.Sprintf("%s %s: %d %s", resp.Request.Method, show(resp.Request.URL), resp.StatusCode, http.StatusText(resp.StatusCode)))
	if said := complaint(data); said != "" {
		what += ": " + Quote(said)
	}
	switch code := resp.StatusCode; {
	case code == http.StatusNotFound:
		return fmt.Errorf("%w: %s", ErrNotFound, what)
	case code == http.StatusUnauthorized, code == http.StatusForbidden:
		return fmt.Errorf("%w: %s", ErrUnauthorized, what)
	case code >= 500, code == http.StatusTooManyRequests, code == http.StatusRequestTimeout:
		err := fmt.Errorf("%w: %s", ErrUnavailable, what)
		if after := retryAfter(resp, time.Now()); after > 0 {
			return &busyError{fmt.Errorf("%w, it asks to wait %s", err, after), after}
		}
		return err
	}
	return fmt.Errorf("unexpected answer of the registry: %s", what)
}

// complaint is what the body of an error answer says (distribution-spec 1.1,
// "Error Codes"), "" if it is of another form.
func complaint(body []byte) string {
	var answer struct {
		Errors []struct{ Code, Message string } `json:"errors"`
	}
	if json.Unmarshal(body, &answer) != nil {
		return ""
	}
	var all []string
	for _, e := range answer.Errors {
		all = append(all, strings.Trim(strings.ToLower(strings.ReplaceAll(e.Code, "_", " "))+": "+e.Message, ": "))
	}
	return strings.Join(all, "; ")
}

// busyError is an answer that names the time after which to try again.
type busyError struct {
	error
	after time.Duration
}

func (e *busyError) Unwrap() error { return e.error }

// retryAfter reads a Retry-After header (RFC 9110, 10.2.3): seconds or a date.
func retryAfter(resp *http.Response, now time.Time) time.Duration {
	text := resp.Header.Get("Retry-After")
	if seconds, err := strconv.ParseUint(text, 10, 31); err == nil {
		return time.Duration(seconds) * time.Second
	}
	if at, err := http.ParseTime(text); err == nil {
		return max(0, at.Sub(now)).Round(time.Second)
	}
	return 0
}

// requestError names what went wrong with a request that got no answer, unless
// it has its name already.
func requestError(ctx context.Context, err error) error {
	switch {
	case ended(ctx) != nil:
		return ended(ctx)
	case errors.Is(err, errForeign):
		return fmt.Errorf("%w: %w", ErrUnauthorized, err)
	case errors.Is(err, ErrUnauthorized), errors.Is(err, ErrUnavailable), errors.Is(err, ErrNotFound):
		return err
	}
	return transportError(ctx, err)
}

// transportError names what went wrong on the wire; net/http may repeat what
// came in raw. The caller's own deadline and cancellation come first: they are
// not the registry's fault.
func transportError(ctx context.Context, err error) error {
	if err := ended(ctx); err != nil {
		return err
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, &printable{err, maxQuote})
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

// temporary tells whether trying again makes sense: after a server error, or a
// connection that broke in whatever way. What needs somebody to change
// something is final, and so is what has been waited for already: the kubelet
// tries again itself.
func temporary(err error) bool {
	if !errors.Is(err, ErrUnavailable) {
		return false
	}
	if errors.Is(err, syscall.ETIMEDOUT) { // a connection that died, to net.Error a timeout
		return true
	}
	for _, final := range []error{errStalled, errRedirect, syscall.ECONNREFUSED, syscall.EHOSTUNREACH, syscall.ENETUNREACH} {
		if errors.Is(err, final) {
			return false
		}
	}
	var name *net.DNSError
	var cert *tls.CertificateVerificationError
	var plain tls.RecordHeaderError
	var late net.Error
	return !errors.As(err, &name) && !errors.As(err, &cert) && !errors.As(err, &plain) && (!errors.As(err, &late) || !late.Timeout())
}

// show is a URL for people: without its query, which may be a signature that
// lets whoever reads it fetch the content, and without user and fragment.
func show(u *url.URL) string {
	return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path, RawPath: u.RawPath}).String()
}
