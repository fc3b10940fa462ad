package registry

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// internet is a set of named hosts. Each has a server, in HTTPS at port 443 and
// in plain HTTP at port 80; any other port is HTTPS too.
type internet struct {
	hosts map[string]http.HandlerFunc

	mu   sync.Mutex
	seen map[string][]string // by scheme and host: the secrets that it got
}

// connect makes a repository at registry.example in the internet.
func (n *internet) connect(t *testing.T, change func(*Repository)) *Repository {
	t.Helper()
	n.seen = map[string][]string{}
	secure, plain := httptest.NewTLSServer(n), httptest.NewServer(n)
	t.Cleanup(secure.Close)
	t.Cleanup(plain.Close)
	r := &Repository{Host: "registry.example", Name: "a/b", Timeout: 10 * time.Second}
	if change != nil {
		change(r)
	}
	if err := r.Open(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	r.transport.TLSClientConfig = &tls.Config{InsecureSkipVerify: true}
	r.transport.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		to := secure
		if strings.HasSuffix(addr, ":80") {
			to = plain
		}
		return (&net.Dialer{}).DialContext(ctx, network, to.Listener.Addr().String())
	}
	return r
}

func (n *internet) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	scheme := "https://"
	if r.TLS == nil {
		scheme = "http://"
	}
	if err := r.ParseForm(); err != nil {
		panic(err)
	}
	n.mu.Lock()
	for _, secret := range []string{r.Header.Get("Authorization"), r.FormValue("refresh_token")} {
		if secret != "" {
			n.seen[scheme+r.Host] = append(n.seen[scheme+r.Host], secret)
		}
	}
	n.mu.Unlock()
	n.hosts[r.Host](w, r)
}

func basic(user, password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
}

// wants answers a request that has none of the authorizations with challenges.
func wants(w http.ResponseWriter, r *http.Request, challenges []string, authorizations ...string) bool {
	for _, a := range authorizations {
		if r.Header.Get("Authorization") == a {
			return false
		}
	}
	for _, c := range challenges {
		w.Header().Add("WWW-Authenticate", c)
	}
	w.WriteHeader(http.StatusUnauthorized)
	return true
}

func giveToken(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Authorization") == basic("u", "hunter2") || r.FormValue("refresh_token") == "hunter2" {
		fmt.Fprint(w, `{"access_token":"T"}`)
		return
	}
	fmt.Fprint(w, `{"token":"anonymous"}`)
}

// TestTokenServers: which server gets the credential to make a token of it. The
// registry's own origin may name any host over HTTPS; nobody else may, and the
// credential goes no further than there (CVE-2020-15157).
func TestTokenServers(t *testing.T) {
	bearer := func(realm string) []string {
		return []string{`Bearer realm="` + realm + `",service="s"`}
	}
	to := func(realm string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if !wants(w, r, bearer(realm), "Bearer T") {
				fmt.Fprint(w, body)
			}
		}
	}
	redirect := func(code int, at string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, at+r.URL.Path, code) }
	}
	const registry = "https://registry.example"
	tests := []struct {
		name  string
		plain bool // the registry is spoken to in plain HTTP
		hosts map[string]http.HandlerFunc
		give  []string // hosts that may have the credential besides the registry
		ok    bool
	}{
		{name: "of another domain", hosts: map[string]http.HandlerFunc{"registry.example": to("https://tokens.other/t"), "tokens.other": giveToken},
			give: []string{"https://tokens.other"}, ok: true},
		{name: "at another port", hosts: map[string]http.HandlerFunc{"registry.example": to("https://registry.example:8443/t"), "registry.example:8443": giveToken},
			give: []string{"https://registry.example:8443"}, ok: true},
		{name: "at an address", hosts: map[string]http.HandlerFunc{"registry.example": to("https://10.0.0.7/t"), "10.0.0.7": giveToken},
			give: []string{"https://10.0.0.7"}, ok: true},
		{name: "of a plain registry", plain: true, hosts: map[string]http.HandlerFunc{"registry.example": to("http://tokens.other/t"), "tokens.other": giveToken},
			give: []string{"http://tokens.other"}, ok: true},
		{name: "in HTTPS, of a plain registry", plain: true, hosts: map[string]http.HandlerFunc{"registry.example": to("https://tokens.other/t"), "tokens.other": giveToken},
			give: []string{"https://tokens.other"}, ok: true},
		{name: "in plain HTTP", hosts: map[string]http.HandlerFunc{"registry.example": to("http://tokens.other/t"), "tokens.other": giveToken}},
		{name: "in plain HTTP, the registry itself", hosts: map[string]http.HandlerFunc{"registry.example": to("http://registry.example/t")}},
		{name: "with a user of its own", hosts: map[string]http.HandlerFunc{"registry.example": to("https://me:pass@tokens.other/t"), "tokens.other": giveToken},
			give: []string{"https://tokens.other"}, ok: true},
		{name: "with another scheme", hosts: map[string]http.HandlerFunc{"registry.example": to("file:///etc/passwd")}},
		{name: "without an address", hosts: map[string]http.HandlerFunc{"registry.example": to("")}},
		{name: "that redirects", hosts: map[string]http.HandlerFunc{"registry.example": to("https://tokens.other/t"), "tokens.other": redirect(302, "https://thief.example"), "thief.example": giveToken},
			give: []string{"https://tokens.other"}},
		{name: "that redirects with the body", hosts: map[string]http.HandlerFunc{"registry.example": to("https://tokens.other/t"), "tokens.other": redirect(307, "https://thief.example"), "thief.example": giveToken},
			give: []string{"https://tokens.other"}},
		{name: "that redirects to plain HTTP", hosts: map[string]http.HandlerFunc{"registry.example": to("https://tokens.other/t"), "tokens.other": redirect(307, "http://tokens.other")},
			give: []string{"https://tokens.other"}},
		{name: "that a redirect's target names", hosts: map[string]http.HandlerFunc{"registry.example": redirect(307, "https://thief.example"), "thief.example": to("https://thief.example/t")}},
		{name: "that is the registry, by a redirect's target", hosts: map[string]http.HandlerFunc{"registry.example": redirect(307, "https://thief.example"), "thief.example": to(registry + "/t")}},
	}
	credentials := map[string]Credential{
		"password":       {Username: "u", Password: "hunter2"},
		"identity token": {IdentityToken: "hunter2"},
	}
	for _, test := range tests {
		for kind, credential := range credentials {
			t.Run(test.name+", "+kind, func(t *testing.T) {
				n := &internet{hosts: test.hosts}
				r := n.connect(t, func(r *Repository) {
					r.Credential = credential
					if test.plain {
						r.PlainHTTP = []string{"registry.example"}
					}
				})
				_, err := get(t, r)
				if test.ok && err != nil || !test.ok && err == nil {
					t.Errorf("got %v, ok %v", err, test.ok)
				}
				if err != nil && strings.Contains(err.Error(), "hunter2") {
					t.Errorf("the error tells the credential: %v", err)
				}
				for host, secrets := range n.seen {
					if !strings.HasSuffix(host, "registry.example") && !(len(test.give) == 1 && test.give[0] == host) {
						t.Errorf("%s got %q", host, secrets)
					}
				}
				if len(test.give) == 1 && len(n.seen[test.give[0]]) == 0 {
					t.Errorf("%s got no credential: %v", test.give[0], n.seen)
				}
			})
		}
	}
}

// TestGuard: it sits below everything that follows addresses.
func TestGuard(t *testing.T) {
	reached := errors.New("reached the wire")
	g := &guard{base: roundTrip(func(*http.Request) (*http.Response, error) { return nil, reached })}
	for _, test := range []struct {
		audience, to string
		body, secret bool
		passes       bool
	}{
		{"https://r.example/v2/", "https://r.example/x", false, true, true},
		{"https://r.example/v2/", "https://R.example:443/x", false, true, true},
		{"https://r.example/v2/", "https://r.example:8443/", false, true, false},
		{"https://r.example/v2/", "http://r.example/", false, true, false},
		{"https://r.example/v2/", "https://cdn.r.example/", false, true, false},
		{"https://r.example/v2/", "https://other/", true, false, false},
		{"https://r.example/v2/", "https://other/", false, false, true},
		{"", "https://r.example/", false, true, false},
	} {
		ctx := context.Background()
		if test.audience != "" {
			u, err := url.Parse(test.audience)
			if err != nil {
				t.Fatal(err)
			}
			ctx = context.WithValue(ctx, audience{}, u)
		}
		content := ""
		if test.body {
			content = "refresh_token=x"
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, test.to, strings.NewReader(content))
		if err != nil {
			t.Fatal(err)
		}
		if test.secret {
			req.Header.Set("Authorization", "Bearer x")
		}
		_, err = g.RoundTrip(req)
		if test.passes != errors.Is(err, reached) || test.passes == errors.Is(err, errForeign) {
			t.Errorf("%+v: %v", test, err)
		}
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// TestChallenges: a 401 offers several ways to authenticate, and one that can be
// answered is found among them.
func TestChallenges(t *testing.T) {
	const bearer = `Bearer realm="https://tokens.other/t",service="s"`
	password := Credential{Username: "u", Password: "hunter2"}
	tests := []struct {
		name       string
		challenges []string
		credential Credential
		accept     string
		err        error
	}{
		{"Negotiate before Basic", []string{"Negotiate", `Basic realm="r"`}, password, basic("u", "hunter2"), nil},
		{"Negotiate before Basic, in one header", []string{`Negotiate, Basic realm="r"`}, password, basic("u", "hunter2"), nil},
		{"Negotiate with data", []string{`Negotiate YIIJ/w+==, Basic realm="r"`}, password, basic("u", "hunter2"), nil},
		{"Digest before Basic", []string{`Digest realm="a, Basic b", nonce="x\"y", qop="auth,auth-int"`, `Basic realm="r"`}, password, basic("u", "hunter2"), nil},
		{"Digest before Bearer, in one header", []string{`Digest realm="r", nonce=abc, ` + bearer}, password, "Bearer T", nil},
		{"Bearer before Negotiate", []string{bearer + `, Negotiate`}, password, "Bearer T", nil},
		{"Bearer before Basic, only Basic is accepted", []string{bearer, `Basic realm="r"`}, password, basic("u", "hunter2"), nil},
		{"Basic before Bearer, anonymous", []string{`Basic realm="r"`, bearer}, Credential{}, "Bearer anonymous", nil},
		{"Bearer of a realm that is not allowed, before Basic", []string{`Bearer realm="http://tokens.other/t"`, "Basic"}, password, basic("u", "hunter2"), nil},
		{"scheme in another case", []string{`bAsIc ReAlM="r"`}, password, basic("u", "hunter2"), nil},
		{"empty password", []string{"Basic"}, Credential{Username: "token"}, basic("token", ""), nil},
		{"empty user", []string{"Basic"}, Credential{Password: "token"}, basic("", "token"), nil},
		{"empty password in auth", []string{"Basic"}, Credential{Auth: base64.StdEncoding.EncodeToString([]byte("token:"))}, basic("token", ""), nil},
		{"only Negotiate", []string{"Negotiate"}, password, "", ErrUnauthorized},
		{"nothing", nil, password, "", ErrUnauthorized},
		{"anonymous, only Basic", []string{"Basic"}, Credential{}, basic("u", "hunter2"), ErrUnauthorized},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			n := &internet{hosts: map[string]http.HandlerFunc{
				"registry.example": func(w http.ResponseWriter, r *http.Request) {
					if !wants(w, r, test.challenges, test.accept) {
						fmt.Fprint(w, body)
					}
				},
				"tokens.other": giveToken,
			}}
			if test.accept == "" {
				n.hosts["registry.example"] = func(w http.ResponseWriter, r *http.Request) { wants(w, r, test.challenges) }
			}
			if _, err := get(t, n.connect(t, func(r *Repository) { r.Credential = test.credential })); !errors.Is(err, test.err) {
				t.Errorf("got %v, want %v", err, test.err)
			}
		})
	}
}

// TestTokenExpires: a token that the registry no longer takes is replaced, once
// for all requests of the pull.
func TestTokenExpires(t *testing.T) {
	var mu sync.Mutex
	valid, given := 1, 0
	n := &internet{hosts: map[string]http.HandlerFunc{
		"registry.example": func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			accept := fmt.Sprint("Bearer ", valid)
			mu.Unlock()
			if !wants(w, r, []string{`Bearer realm="https://registry.example:1/t"`}, accept) {
				fmt.Fprint(w, body)
			}
		},
		"registry.example:1": func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			defer mu.Unlock()
			given++
			fmt.Fprintf(w, `{"token":"%d"}`, valid)
		},
	}}
	r := n.connect(t, nil)
	for range 2 {
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				if _, err := get(t, r); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		mu.Lock()
		valid++
		mu.Unlock()
	}
	if given != 2 {
		t.Errorf("asked for %d tokens, want 2", given)
	}
}

// TestLoopbackSpeaksEither: a registry on loopback is spoken to in HTTPS if it
// can, else in HTTP; a certificate that is not trusted is told, not avoided.
func TestLoopbackSpeaksEither(t *testing.T) {
	handler := func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, body) }
	plain := serve(t, handler)
	if _, err := get(t, open(t, plain, nil)); err != nil {
		t.Errorf("plain HTTP: %v", err)
	}
	secure := httptest.NewTLSServer(http.HandlerFunc(handler))
	t.Cleanup(secure.Close)
	r := open(t, secure, nil)
	r.transport.TLSClientConfig = secure.Client().Transport.(*http.Transport).TLSClientConfig
	if _, err := get(t, r); err != nil {
		t.Errorf("HTTPS: %v", err)
	}
	if _, err := get(t, open(t, secure, nil)); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("untrusted: %v", err)
	}
	if _, err := get(t, open(t, secure, func(r *Repository) { r.PlainHTTP = []string{r.Host} })); err == nil || strings.Contains(err.Error(), "certificate") {
		t.Errorf("configured as plain: %v", err)
	}
}

// FuzzParseChallenges: whatever a header holds, reading it ends.
func FuzzParseChallenges(f *testing.F) {
	for _, header := range []string{"", `Basic realm="r"`, `Negotiate a==, Bearer realm="x,\"y", scope=z`, `,,=,"`, `a="`, "Bearer realm"} {
		f.Add(header)
	}
	f.Fuzz(func(t *testing.T, header string) {
		for _, c := range parseChallenges(header) {
			if c.scheme == "" || c.scheme != strings.ToLower(c.scheme) {
				t.Errorf("scheme %q", c.scheme)
			}
		}
	})
}

// TestErrorsHideAndQuote: an error names no query of a URL, wherever the address
// came from, and repeats nothing raw.
func TestErrorsHideAndQuote(t *testing.T) {
	const signed = "/blob?X-Amz-Signature=hunter2&x=y"
	closed := httptest.NewServer(nil)
	closed.Close()
	tests := map[string]http.HandlerFunc{
		"refused after a redirect": func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/blob" {
				w.WriteHeader(http.StatusForbidden)
				return
			}
			http.Redirect(w, r, signed, http.StatusTemporaryRedirect)
		},
		"broken after a redirect": func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/blob" {
				panic(http.ErrAbortHandler)
			}
			http.Redirect(w, r, signed, http.StatusTemporaryRedirect)
		},
		"down after a redirect": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, closed.URL+signed, http.StatusTemporaryRedirect)
		},
		"redirects for ever": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, signed, http.StatusTemporaryRedirect)
		},
		"redirect that is not an address": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Location", "http://[::1"+signed)
			w.WriteHeader(http.StatusTemporaryRedirect)
		},
		"redirect to another scheme": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Location", "ftp://x"+signed)
			w.WriteHeader(http.StatusTemporaryRedirect)
		},
		"said by the registry": func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusForbidden)
			fmt.Fprint(w, `{"errors":[{"code":"DENIED","message":"see https://s3.example`+signed+` \u001b[2J\nE1201 forged line \u202e`+strings.Repeat("x", 4000)+`"}]}`)
		},
		"named as the token server": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("WWW-Authenticate", `Bearer realm="http://[::1`+signed+`"`)
			w.WriteHeader(http.StatusUnauthorized)
		},
		"refused by the token server": func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/blob" {
				w.WriteHeader(http.StatusForbidden)
				return
			}
			w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+r.Host+signed+`"`)
			w.WriteHeader(http.StatusUnauthorized)
		},
		"in the status line": func(w http.ResponseWriter, r *http.Request) {
			raw(w, "HTTP/1.1 403 see https://s3.example"+signed+" \x1b[2J\r\nContent-Length: 0\r\n\r\n")
		},
		"in a header that is none": func(w http.ResponseWriter, r *http.Request) {
			raw(w, "HTTP/1.1 200 OK\r\nsee https://s3.example"+signed+" \x1b[2J\r\n\r\n")
		},
		"in the digest": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Docker-Content-Digest", "see https://s3.example"+signed+strings.Repeat("x", 4000))
			fmt.Fprint(w, body)
		},
		"in the content type": func(w http.ResponseWriter, r *http.Request) {
			raw(w, "HTTP/1.1 500 x\r\nContent-Length: 0\r\nContent-Type: \x1b[2J https://s3.example"+signed+"\r\n\r\n")
		},
	}
	for name, answer := range tests {
		t.Run(name, func(t *testing.T) {
			r := open(t, serve(t, answer), nil)
			b := r.Blob(context.Background(), digest.FromBytes(data), int64(len(data)))
			defer b.Close()
			_, blobErr := b.Read(make([]byte, 1))
			_, err := get(t, r)
			for _, err := range []error{err, blobErr} {
				if err == nil {
					t.Fatal("succeeded")
				}
				text := err.Error()
				if strings.Contains(text, "hunter2") || strings.Contains(text, "Signature") {
					t.Errorf("a signature: %s", text)
				}
				if strings.ContainsAny(text, "\x1b\n\r\u202e") {
					t.Errorf("raw text: %q", text)
				}
				if len(text) > 1<<10 {
					t.Errorf("%d bytes: %.100s…", len(text), text)
				}
			}
		})
	}
}

// raw answers with exactly these bytes.
func raw(w http.ResponseWriter, answer string) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(err)
	}
	defer conn.Close()
	_, _ = conn.Write([]byte(answer))
}
