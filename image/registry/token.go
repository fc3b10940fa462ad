package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
)

// maxToken bounds the answer of a token server.
const maxToken = 1 << 20

// fetchToken asks the token server that a Bearer challenge of the registry
// names (distribution's token authentication; with an identity token, its OAuth2
// form). The server may be any host: the registry's word counts, and TLS proves
// both. Over plain HTTP it is only asked for a registry that is itself spoken to
// in plain HTTP.
func (r *Repository) fetchToken(ctx context.Context, registry *url.URL, params map[string]string) (string, error) {
	realm, err := tokenServer(registry, params["realm"])
	if err != nil {
		return "", err
	}
	form := url.Values{}
	if service := params["service"]; service != "" {
		form.Set("service", service)
	}
	scope := params["scope"]
	if scope == "" {
		scope = "repository:" + r.Name + ":pull"
	}
	m := &message{method: http.MethodGet, to: realm, header: http.Header{}}
	switch {
	case r.secrets.identityToken != "":
		form.Set("scope", scope)
		form.Set("grant_type", "refresh_token")
		form.Set("refresh_token", r.secrets.identityToken)
		form.Set("client_id", "berth")
		m.method, m.body = http.MethodPost, form.Encode()
		m.header.Set("Content-Type", "application/x-www-form-urlencoded")
	default:
		query := realm.Query()
		for name, values := range form {
			query[name] = values
		}
		for _, s := range strings.Fields(scope) {
			query.Add("scope", s)
		}
		realm.RawQuery = query.Encode()
		if r.secrets.basic != "" {
			m.authorization = "Basic " + r.secrets.basic
		}
	}
	resp, err := r.send(ctx, m)
	if err != nil {
		return "", fmt.Errorf("token server %s: %w", realm.Host, err)
	}
	return readToken(resp)
}

// tokenServer checks the address of a token server.
func tokenServer(registry *url.URL, realm string) (*url.URL, error) {
	u, err := url.Parse(realm)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
		return nil, fmt.Errorf("%w: its token server has an invalid address: %s", ErrUnauthorized, Quote(withoutQuery(realm)))
	}
	if u.Scheme == "http" && registry.Scheme != "http" {
		return nil, fmt.Errorf("%w: %s over plain HTTP, as the token server of %s", errForeign, u.Host, registry.Host)
	}
	u.User, u.Fragment = nil, ""
	return u, nil
}

func readToken(resp *http.Response) (string, error) {
	if resp.StatusCode != http.StatusOK {
		err := statusError(resp)
		if !errors.Is(err, ErrUnavailable) {
			err = fmt.Errorf("%w: token server: %w", ErrUnauthorized, err)
		}
		return "", err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxToken))
	if err != nil {
		return "", err
	}
	var answer struct {
		Token       string `json:"token"`
		AccessToken string `json:"access_token"`
	}
	if err := json.Unmarshal(data, &answer); err != nil || answer.Token == "" && answer.AccessToken == "" {
		return "", fmt.Errorf("%w: token server %s answers without a token", ErrUnauthorized, resp.Request.URL.Host)
	}
	if answer.AccessToken != "" {
		return answer.AccessToken, nil
	}
	return answer.Token, nil
}
