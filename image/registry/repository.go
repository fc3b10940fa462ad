package registry

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
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
	PlainHTTP  []string      // hosts (host or host:port) spoken to in plain HTTP
	Credential Credential    // anonymous if zero
	Timeout    time.Duration // without progress, until a transfer is given up; 0: one minute
	MinRate    int64         // bytes per second, over Timeout, that count as progress; 0: DefaultMinRate

	address     string  // host that requests go to, with its port if it has one
	secrets     secrets // of Credential
	transport   *http.Transport
	wire        http.RoundTripper // transport behind the guard
	authorizing chan struct{}     // held by the request that answers a challenge

	mu            sync.Mutex
	scheme        string // "" until an address on loopback has shown which it speaks
	authorization string // that the registry last accepted
}

var (
	hostForm = regexp.MustCompile(`^(\[[0-9a-fA-F:.]+\]|[a-zA-Z0-9]([-.a-zA-Z0-9]*[a-zA-Z0-9])?)(:[0-9]{1,5})?$`)
	nameForm = regexp.MustCompile(`^[a-z0-9]+([._/-]+[a-z0-9]+)*$`)
)

// Open checks the fields and makes the client. It speaks to nobody.
func (r *Repository) Open() (err error) {
	if !hostForm.MatchString(r.Host) || !nameForm.MatchString(r.Name) {
		return fmt.Errorf("%s/%s is not a repository", r.Host, r.Name)
	}
	r.Timeout = cmp.Or(r.Timeout, time.Minute)
	r.MinRate = cmp.Or(r.MinRate, DefaultMinRate)
	r.address = r.Host
	if r.Host == "docker.io" {
		r.address = "registry-1.docker.io"
	}
	name := (&url.URL{Host: r.address}).Hostname()
	switch {
	case slices.Contains(r.PlainHTTP, r.address), slices.Contains(r.PlainHTTP, name):
		r.scheme = "http"
	case !isLoopback(name):
		r.scheme = "https"
	}
	if r.secrets, err = r.Credential.forHost(r.Host); err != nil {
		return err
	}
	r.transport = &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            (&net.Dialer{Timeout: r.Timeout}).DialContext,
		TLSHandshakeTimeout:    r.Timeout,
		ForceAttemptHTTP2:      true,
		DisableCompression:     true, // a blob's bytes are hashed as they are
		MaxIdleConnsPerHost:    8,
		MaxResponseHeaderBytes: 64 << 10,
		IdleConnTimeout:        r.Timeout,
		ExpectContinueTimeout:  time.Second,
	}
	r.wire = &guard{base: r.transport}
	r.authorizing = make(chan struct{}, 1)
	return nil
}

// Close ends the idle connections.
func (r *Repository) Close() { r.transport.CloseIdleConnections() }

// get makes one GET request below the repository. The answer's status is one
// of ok; its body is under the pace and must be closed.
func (r *Repository) get(ctx context.Context, p *pace, path string, header http.Header, ok []int) (*http.Response, error) {
	req := p.begin(ctx)
	resp, err := r.askFor(req.ctx, path, header)
	req.came(0)
	if err != nil {
		err = requestError(ctx, req.explain(err))
		req.end()
		return nil, err
	}
	resp.Body = &pacedBody{ReadCloser: resp.Body, request: req}
	if !slices.Contains(ok, resp.StatusCode) {
		return nil, statusError(resp)
	}
	return resp, nil
}

func (r *Repository) askFor(ctx context.Context, path string, header http.Header) (*http.Response, error) {
	scheme, err := r.contact(ctx)
	if err != nil {
		return nil, err
	}
	base := &url.URL{Scheme: scheme, Host: r.address}
	return r.ask(ctx, base.JoinPath("v2", r.Name, path), header)
}

// contact returns the scheme of the registry. One on loopback that nobody has
// configured is asked with a handshake: HTTPS counts, also with a certificate
// that is not trusted, which is for the operator to see. Plain HTTP is the
// fallback, if whoever listens there does not speak TLS.
func (r *Repository) contact(ctx context.Context) (string, error) {
	r.mu.Lock()
	scheme := r.scheme
	r.mu.Unlock()
	if scheme != "" {
		return scheme, nil
	}
	u := &url.URL{Scheme: "https", Host: r.address}
	config := &tls.Config{}
	if r.transport.TLSClientConfig != nil {
		config = r.transport.TLSClientConfig.Clone()
	}
	// A server of plain HTTP answers once it has read a whole line, and nothing
	// else in a handshake is sure to end one.
	config.NextProtos = []string{"h2", "http/1.1", "\r\n\r\n"}
	conn, err := (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", net.JoinHostPort(u.Hostname(), port(u)))
	if err == nil {
		conn.Close()
	}
	if ctx.Err() != nil {
		return "", context.Cause(ctx)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.scheme = "https"
	if speaksNoTLS(err) {
		r.scheme = "http"
	}
	return r.scheme, nil
}

func speaksNoTLS(err error) bool {
	var plain tls.RecordHeaderError
	return errors.As(err, &plain) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNREFUSED)
}

// again waits before another try after err, or returns err if there is none:
// because err is final, because there were enough without progress, or because
// the registry asks for more time than the pace has patience for.
func (p *pace) again(ctx context.Context, err error, failed *int) error {
	if over := ended(ctx); over != nil {
		return over
	}
	if !temporary(err) {
		return err
	}
	var busy *busyError
	wait := backoff << *failed
	if errors.As(err, &busy) {
		wait = busy.after // an appointment, which is no failed try
	} else if *failed++; *failed >= tries {
		return err
	}
	if perr := p.pause(ctx, wait); errors.Is(perr, errStalled) {
		return err
	} else if perr != nil {
		return perr
	}
	return nil
}

func isLoopback(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.Unmap().IsLoopback()
}
