package registry

import (
	"encoding/base64"
	"errors"
	"strings"

	"oras.land/oras-go/v2/registry/remote/auth"
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

// forHost is the credential in oras-go's form, empty when ServerAddress names
// another host. The error never holds any part of the credential.
func (c Credential) forHost(host string) (auth.Credential, error) {
	if c.ServerAddress != "" && canonicalHost(c.ServerAddress) != canonicalHost(host) {
		return auth.EmptyCredential, nil
	}
	user, password := c.Username, c.Password
	if c.Auth != "" {
		plain, err := base64.StdEncoding.DecodeString(c.Auth)
		if err != nil {
			return auth.EmptyCredential, errors.New("decode auth of the credential: not base64")
		}
		var ok bool
		if user, password, ok = strings.Cut(string(plain), ":"); !ok {
			return auth.EmptyCredential, errors.New("decode auth of the credential: not username:password")
		}
		password = strings.TrimRight(password, "\x00")
	}
	return auth.Credential{
		Username:     user,
		Password:     password,
		RefreshToken: c.IdentityToken,
		AccessToken:  c.RegistryToken,
	}, nil
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
