package registry

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strings"

	"golang.org/x/net/publicsuffix"
)

// errForeign: a request would have carried a secret to a foreign host.
var errForeign = errors.New("refused to send a credential to a foreign host")

// guard is the last stage before the wire: it lets no request that carries a
// secret leave for a host that the credential is not for. It sits below oras-go
// and net/http on purpose, so that a redirect, a token realm or a mistake in
// either cannot go around it (CVE-2020-15157).
//
// The policy: a request with an Authorization header or a body (the token
// request of an identity token) may go
//
//   - to the registry itself: same scheme, host and port;
//   - over HTTPS to the registry's own host name on another port, or to a host
//     of the same registrable domain (registry-1.docker.io and auth.docker.io).
//
// An anonymous request may go anywhere: a blob is often redirected to a content
// delivery network, and its digest proves it.
type guard struct {
	registry *url.URL
	base     http.RoundTripper
}

func (g *guard) RoundTrip(req *http.Request) (*http.Response, error) {
	secret := req.Header.Get("Authorization") != "" || req.Body != nil && req.Body != http.NoBody
	if secret && !g.trusts(req.URL) {
		if req.Body != nil {
			req.Body.Close()
		}
		return nil, fmt.Errorf("%w: %s, for the registry %s", errForeign, req.URL.Host, g.registry.Host)
	}
	return g.base.RoundTrip(req)
}

func (g *guard) trusts(u *url.URL) bool {
	if u.Scheme == g.registry.Scheme && strings.EqualFold(u.Host, g.registry.Host) {
		return true
	}
	if u.Scheme != "https" {
		return false
	}
	own, other := strings.ToLower(g.registry.Hostname()), strings.ToLower(u.Hostname())
	if own == other {
		return true
	}
	if isAddr(own) || isAddr(other) {
		return false
	}
	a, errA := publicsuffix.EffectiveTLDPlusOne(own)
	b, errB := publicsuffix.EffectiveTLDPlusOne(other)
	return errA == nil && errB == nil && a == b
}

func isAddr(host string) bool {
	_, err := netip.ParseAddr(host)
	return err == nil
}
