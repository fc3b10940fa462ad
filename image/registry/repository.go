package registry

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	oras "oras.land/oras-go/v2/registry"
	"oras.land/oras-go/v2/registry/remote/auth"
)

// tries is how often a request is made whose answer is a temporary failure, and
// how often a blob is taken up again without progress.
const tries = 4

// backoff is the wait before the second try; it doubles with each.
const backoff = 100 * time.Millisecond

// Repository is one repository of a registry as one credential sees it. Set the
// fields, then Open, then Close. Its methods may run at the same time.
type Repository struct {
	Host       string        // as in a reference, e.g. "docker.io" or "127.0.0.1:5000"
	Name       string        // path, e.g. "library/busybox"
	PlainHTTP  []string      // hosts (host or host:port) spoken to in plain HTTP besides loopback
	Credential Credential    // anonymous if zero
	Timeout    time.Duration // without progress, until a request is given up; 0: one minute

	base      *url.URL // scheme and host that requests go to
	ref       oras.Reference
	transport *http.Transport
	client    *auth.Client
}

// Open checks the fields and makes the client. It speaks to nobody.
func (r *Repository) Open() error {
	r.ref = oras.Reference{Registry: r.Host, Repository: r.Name}
	if err := errors.Join(r.ref.ValidateRegistry(), r.ref.ValidateRepository()); err != nil {
		return err
	}
	if r.Timeout == 0 {
		r.Timeout = time.Minute
	}
	r.base = &url.URL{Scheme: "https", Host: r.ref.Host()}
	if isLoopback(r.base.Hostname()) || slices.Contains(r.PlainHTTP, r.base.Host) || slices.Contains(r.PlainHTTP, r.base.Hostname()) {
		r.base.Scheme = "http"
	}
	cred, err := r.Credential.forHost(r.Host)
	if err != nil {
		return err
	}
	r.transport = &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: r.Timeout}).DialContext,
		TLSHandshakeTimeout:   r.Timeout,
		ForceAttemptHTTP2:     true,
		DisableCompression:    true, // a blob's bytes are hashed as they are
		MaxIdleConnsPerHost:   8,
		IdleConnTimeout:       r.Timeout,
		ExpectContinueTimeout: time.Second,
	}
	r.client = &auth.Client{
		Client:     &http.Client{Transport: &guard{registry: r.base, base: r.transport}, CheckRedirect: r.checkRedirect},
		Header:     http.Header{"User-Agent": {"berth"}},
		Credential: auth.StaticCredential(r.Host, cred),
		Cache:      auth.NewCache(),
		ClientID:   "berth",
	}
	return nil
}

// Close ends the idle connections.
func (r *Repository) Close() { r.transport.CloseIdleConnections() }

// checkRedirect bounds redirects and never leaves HTTPS for plain HTTP.
func (r *Repository) checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) >= 10 {
		return errors.New("stopped after 10 redirects")
	}
	if via[len(via)-1].URL.Scheme == "https" && req.URL.Scheme != "https" {
		return errors.New("redirect from https to plain http")
	}
	return nil
}

// get makes one GET request below the repository. The answer's status is one
// of ok; its body is under a stall clock and must be closed.
func (r *Repository) get(ctx context.Context, path string, header http.Header, ok []int) (*http.Response, error) {
	u := r.base.JoinPath("v2", r.Name, path)
	clock := watch(ctx, r.Timeout)
	scoped := auth.AppendRepositoryScope(clock.ctx, r.ref, auth.ActionPull)
	req, err := http.NewRequestWithContext(scoped, http.MethodGet, u.String(), nil)
	if err != nil {
		clock.stop()
		return nil, err
	}
	req.Header = header.Clone()
	resp, err := r.client.Do(req)
	if err != nil {
		err = requestError(ctx, clock.explain(err))
		clock.stop()
		return nil, err
	}
	resp.Body = &watchedBody{ReadCloser: resp.Body, stall: clock}
	if !slices.Contains(ok, resp.StatusCode) {
		return nil, statusError(resp)
	}
	return resp, nil
}

// pause waits before try n+1.
func pause(ctx context.Context, n int) error {
	timer := time.NewTimer(backoff << (n - 1))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

func isLoopback(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.Unmap().IsLoopback()
}
