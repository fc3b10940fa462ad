package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
)

// maxRedirects bounds a chain of redirects.
const maxRedirects = 10

// errRedirect: a redirect that is not followed. Trying again is no use.
var errRedirect = errors.New("unusable redirect")

// message is a request, with whatever it has of secrets.
type message struct {
	method        string
	to            *url.URL
	header        http.Header
	authorization string // for the origin of to, and nobody else
	body          string // likewise
}

// send makes a request and follows redirects. Once a chain has left the origin
// that the message is for, its secrets are dropped for good; a body, which
// nobody else may see, goes no further at all. The answer's Request is the last
// one.
func (r *Repository) send(ctx context.Context, m *message) (*http.Response, error) {
	ctx = context.WithValue(ctx, audience{}, m.to)
	to, own := m.to, true
	for range maxRedirects {
		req, err := http.NewRequestWithContext(ctx, m.method, to.String(), strings.NewReader(m.body))
		if err != nil {
			return nil, err
		}
		req.Header = m.header.Clone()
		req.Header.Set("User-Agent", "berth")
		if own && m.authorization != "" {
			req.Header.Set("Authorization", m.authorization)
		}
		resp, err := r.wire.RoundTrip(req)
		if err != nil {
			return nil, err
		}
		location := resp.Header.Get("Location")
		if !isRedirect(resp.StatusCode) || location == "" {
			return resp, nil
		}
		drain(resp)
		if to, err = target(to, location); err != nil {
			return nil, err
		}
		own = own && sameOrigin(to, m.to)
		if m.body != "" && !own {
			return nil, fmt.Errorf("%w: %s, by a redirect of %s", errForeign, to.Host, m.to.Host)
		}
	}
	return nil, fmt.Errorf("%w: the %dth in a row", errRedirect, maxRedirects)
}

func isRedirect(code int) bool {
	switch code {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		return true
	}
	return false
}

// target is where a redirect of from leads. The text of an address may hold a
// signature, so no error repeats it.
func target(from *url.URL, location string) (*url.URL, error) {
	to, err := from.Parse(location)
	switch {
	case err != nil || to.Host == "" || to.Scheme != "https" && to.Scheme != "http":
		return nil, fmt.Errorf("%w: %s leads to an address that is not HTTP", errRedirect, from.Host)
	case from.Scheme == "https" && to.Scheme != "https":
		return nil, fmt.Errorf("%w: from HTTPS at %s to plain HTTP at %s", errRedirect, from.Host, to.Host)
	}
	to.User, to.Fragment = nil, ""
	return to, nil
}

// drain takes the rest of a small answer, so that its connection can be used
// again.
func drain(resp *http.Response) {
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, maxErrorBody))
	resp.Body.Close()
}
