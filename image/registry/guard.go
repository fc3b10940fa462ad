package registry

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
)

// errForeign: a request would have carried a secret to a foreign host.
var errForeign = errors.New("refused to send a credential to a foreign host")

// audience is the context key of the address whose origin the secrets of a
// request are for.
type audience struct{}

// guard is the last stage before the wire: it lets no request that carries a
// secret (an Authorization header, or a body: the token request of an identity
// token) leave for another origin than the one the secret was put there for. It
// sits below redirects and the token flow on purpose, so that no mistake in
// either can go around it (CVE-2020-15157).
//
// Who may have a secret is decided in two places: ask gives the credential to
// the registry's own origin, fetchToken to the token server that this origin
// names. An anonymous request may go anywhere: a blob is often redirected to a
// content delivery network, and its digest proves it.
type guard struct{ base http.RoundTripper }

func (g *guard) RoundTrip(req *http.Request) (*http.Response, error) {
	secret := req.Header.Get("Authorization") != "" || req.Body != nil && req.Body != http.NoBody
	to, _ := req.Context().Value(audience{}).(*url.URL)
	if secret && (to == nil || !sameOrigin(req.URL, to)) {
		if req.Body != nil {
			req.Body.Close()
		}
		return nil, fmt.Errorf("%w: %s", errForeign, req.URL.Host)
	}
	return g.base.RoundTrip(req)
}

// sameOrigin compares scheme, host and port.
func sameOrigin(a, b *url.URL) bool {
	return a.Scheme == b.Scheme && strings.EqualFold(a.Hostname(), b.Hostname()) && port(a) == port(b)
}

func port(u *url.URL) string {
	switch {
	case u.Port() != "":
		return u.Port()
	case u.Scheme == "https":
		return "443"
	}
	return "80"
}
