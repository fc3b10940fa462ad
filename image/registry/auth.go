package registry

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
)

// Credential is what a caller has to identify itself with; the zero value is
// anonymous. See image.Auth for its fields.
type Credential struct {
	Username, Password string
	Auth               string
	ServerAddress      string
	IdentityToken      string
	RegistryToken      string
}

// secrets are the parts of a credential that is for this registry.
type secrets struct {
	basic         string // base64 of user:password; "" if there is neither
	identityToken string
	registryToken string
}

// forHost returns the parts of the credential, none when ServerAddress names
// another host. The error never holds any part of the credential.
func (c Credential) forHost(host string) (secrets, error) {
	if c.ServerAddress != "" && canonicalHost(c.ServerAddress) != canonicalHost(host) {
		return secrets{}, nil
	}
	s := secrets{identityToken: c.IdentityToken, registryToken: c.RegistryToken}
	user, password := c.Username, c.Password
	if c.Auth != "" {
		plain, err := base64.StdEncoding.DecodeString(c.Auth)
		if err != nil {
			return secrets{}, errors.New("decode auth of the credential: not base64")
		}
		var ok bool
		if user, password, ok = strings.Cut(string(plain), ":"); !ok {
			return secrets{}, errors.New("decode auth of the credential: not username:password")
		}
		password = strings.TrimRight(password, "\x00")
	}
	// One of the two may be empty: some registries take a token as the password
	// of nobody, or as a name without a password.
	if user != "" || password != "" {
		s.basic = base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
	}
	return s, nil
}

// canonicalHost is the host of a server address as people write it: with or
// without a scheme, a path, or one of the names of Docker's own registry.
func canonicalHost(address string) string {
	_, rest, ok := strings.Cut(address, "://")
	if !ok {
		rest = address
	}
	host, _, _ := strings.Cut(rest, "/")
	host = strings.ToLower(host)
	switch host {
	case "index.docker.io", "registry-1.docker.io", "docker.io":
		return "docker.io"
	}
	return host
}

// ask makes a GET request of the registry and answers its challenge, if it has
// one. An answer that is a 401 still is for the caller to report.
func (r *Repository) ask(ctx context.Context, u *url.URL, header http.Header) (*http.Response, error) {
	get := func(authorization string) (*http.Response, error) {
		return r.send(ctx, &message{method: http.MethodGet, to: u, header: header, authorization: authorization})
	}
	used := r.lastAuthorization()
	resp, err := get(used)
	if err != nil || !challenged(u, resp) {
		return resp, err
	}
	// One request finds the answer, the others of this pull use it.
	select {
	case r.authorizing <- struct{}{}:
		defer func() { <-r.authorizing }()
	case <-ctx.Done():
		resp.Body.Close()
		return nil, context.Cause(ctx)
	}
	if now := r.lastAuthorization(); now != used {
		drain(resp)
		used = now
		if resp, err = get(used); err != nil || !challenged(u, resp) {
			return resp, err
		}
	}
	return r.authorize(ctx, resp, get, used)
}

// authorize tries one challenge of a 401 after the other, but for an answer that
// was just refused. It returns the answer to the first that is accepted, or else
// the last 401, or why no challenge could be answered.
func (r *Repository) authorize(ctx context.Context, resp *http.Response, get func(string) (*http.Response, error), used string) (*http.Response, error) {
	var failed error
	registry := resp.Request.URL
	for _, c := range usable(resp.Header.Values("Www-Authenticate")) {
		authorization, err := r.answer(ctx, registry, c)
		if err != nil && failed != nil {
			err = fmt.Errorf("%w; %w", failed, err)
		}
		if err != nil {
			failed = err
			continue
		}
		if authorization == "" || authorization == used {
			continue
		}
		drain(resp)
		if resp, err = get(authorization); err != nil {
			return nil, err
		}
		if !challenged(registry, resp) {
			r.setAuthorization(authorization)
			return resp, nil
		}
	}
	if failed != nil {
		resp.Body.Close()
		return nil, failed
	}
	return resp, nil
}

// challenged tells whether resp is a 401 of the registry itself. What a
// redirect leads to has no say in where a credential goes (CVE-2020-15157).
func challenged(u *url.URL, resp *http.Response) bool {
	return resp.StatusCode == http.StatusUnauthorized && sameOrigin(resp.Request.URL, u)
}

// answer is the Authorization header that answers a challenge, "" if there is
// none.
func (r *Repository) answer(ctx context.Context, registry *url.URL, c challenge) (string, error) {
	if c.scheme == "basic" {
		if r.secrets.basic == "" {
			return "", nil
		}
		return "Basic " + r.secrets.basic, nil
	}
	token := r.secrets.registryToken
	if token == "" {
		var err error
		if token, err = r.fetchToken(ctx, registry, c.params); err != nil {
			return "", err
		}
	}
	return "Bearer " + token, nil
}

func (r *Repository) lastAuthorization() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.authorization
}

func (r *Repository) setAuthorization(a string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.authorization = a
}
