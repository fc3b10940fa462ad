package registry

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"berth/test/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

const body = `{"schemaVersion":2}`

// open makes a repository at server, changed by the test.
func open(t *testing.T, server *httptest.Server, change func(*Repository)) *Repository {
	t.Helper()
	u, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	r := &Repository{Host: u.Host, Name: "a/b", Timeout: 10 * time.Second}
	if change != nil {
		change(r)
	}
	if err := r.Open(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

func serve(t *testing.T, h http.HandlerFunc) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s
}

func get(t *testing.T, r *Repository) (Manifest, error) {
	t.Helper()
	return r.Manifest(context.Background(), "tag", []string{"application/json"})
}

// TestCredentials: each form of a credential reaches the registry as it must.
func TestCredentials(t *testing.T) {
	const user, password = "user", "pass:word"
	basic := "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
	encoded := base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
	tests := []struct {
		name      string
		cred      Credential
		challenge string // what the registry asks for
		token     func(*http.Request) bool
		want      string // Authorization that the registry accepts
		err       error
	}{
		{name: "anonymous, open registry"},
		{name: "anonymous, closed registry", challenge: "Basic", want: basic, err: ErrUnauthorized},
		{name: "username and password", cred: Credential{Username: user, Password: password}, challenge: "Basic", want: basic},
		{name: "auth", cred: Credential{Auth: encoded}, challenge: "Basic", want: basic},
		{name: "wrong password", cred: Credential{Username: user, Password: "no"}, challenge: "Basic", want: basic, err: ErrUnauthorized},
		{name: "anonymous token", challenge: "Bearer", want: "Bearer T", token: func(r *http.Request) bool { return r.Header.Get("Authorization") == "" }},
		{name: "token for a password", cred: Credential{Username: user, Password: password}, challenge: "Bearer", want: "Bearer T", token: func(r *http.Request) bool { return r.Header.Get("Authorization") == basic }},
		{name: "token refused", cred: Credential{Username: user, Password: "no"}, challenge: "Bearer", want: "Bearer T", token: func(r *http.Request) bool { return r.Header.Get("Authorization") == basic }, err: ErrUnauthorized},
		{name: "identity token", cred: Credential{IdentityToken: "I"}, challenge: "Bearer", want: "Bearer T", token: func(r *http.Request) bool {
			return r.Method == http.MethodPost && r.FormValue("refresh_token") == "I" && r.FormValue("grant_type") == "refresh_token"
		}},
		{name: "registry token", cred: Credential{RegistryToken: "T"}, challenge: "Bearer", want: "Bearer T", token: func(*http.Request) bool { return false }},
		{name: "for this server address", cred: Credential{Username: user, Password: password, ServerAddress: "HOST"}, challenge: "Basic", want: basic},
		{name: "for this server address as a URL", cred: Credential{Username: user, Password: password, ServerAddress: "http://HOST/v2/"}, challenge: "Basic", want: basic},
		{name: "for another server address", cred: Credential{Username: user, Password: password, ServerAddress: "other.example"}, challenge: "Basic", want: basic, err: ErrUnauthorized},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var self string
			s := serve(t, func(w http.ResponseWriter, r *http.Request) {
				switch {
				case r.URL.Path == "/token":
					if test.token == nil || !test.token(r) {
						w.WriteHeader(http.StatusUnauthorized)
						return
					}
					fmt.Fprint(w, `{"token":"T","access_token":"T"}`)
				case r.Header.Get("Authorization") == test.want:
					fmt.Fprint(w, body)
				case test.challenge == "Bearer":
					w.Header().Set("WWW-Authenticate", `Bearer realm="`+self+`/token",service="s",scope="repository:a/b:pull"`)
					w.WriteHeader(http.StatusUnauthorized)
				default:
					w.Header().Set("WWW-Authenticate", `Basic realm="r"`)
					w.WriteHeader(http.StatusUnauthorized)
				}
			})
			self = s.URL
			r := open(t, s, func(r *Repository) {
				r.Credential = test.cred
				r.Credential.ServerAddress = strings.ReplaceAll(test.cred.ServerAddress, "HOST", r.Host)
			})
			_, err := get(t, r)
			if !errors.Is(err, test.err) {
				t.Errorf("got %v, want %v", err, test.err)
			}
			if err != nil && (strings.Contains(err.Error(), password) || strings.Contains(err.Error(), encoded)) {
				t.Errorf("the error tells the credential: %v", err)
			}
		})
	}
}

func TestBadCredential(t *testing.T) {
	for _, auth := range []string{"*secret*", base64.StdEncoding.EncodeToString([]byte("secret"))} {
		r := &Repository{Host: "localhost", Name: "a", Credential: Credential{Auth: auth}}
		if err := r.Open(); err == nil || strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), auth) {
			t.Errorf("got %v", err)
		}
	}
}

// thief is a server that must never see a secret.
type thief struct {
	mu   sync.Mutex
	seen []string
}

func (f *thief) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	data, _ := io.ReadAll(r.Body)
	all := fmt.Sprint(r.Header, r.URL, string(data))
	f.mu.Lock()
	f.seen = append(f.seen, all)
	f.mu.Unlock()
	fmt.Fprint(w, `{"token":"T"}`)
}

func (f *thief) check(t *testing.T) {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, seen := range f.seen {
		for _, secret := range []string{"hunter2", "Authorization", "refresh_token"} {
			if strings.Contains(seen, secret) {
				t.Errorf("a foreign host saw %s: %s", secret, seen)
			}
		}
	}
}

// TestBlobRedirect: a content delivery network gets the request without the
// credential.
func TestBlobRedirect(t *testing.T) {
	foreign := &thief{}
	away := httptest.NewServer(foreign)
	t.Cleanup(away.Close)
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if _, _, ok := r.BasicAuth(); !ok {
			w.Header().Set("WWW-Authenticate", "Basic")
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		http.Redirect(w, r, away.URL+"/blob", http.StatusTemporaryRedirect)
	})
	r := open(t, s, func(r *Repository) { r.Credential = Credential{Username: "u", Password: "hunter2"} })
	want := `{"token":"T"}`
	b := r.Blob(context.Background(), digest.FromString(want), int64(len(want)))
	defer b.Close()
	if got, err := io.ReadAll(b); err != nil || string(got) != want {
		t.Errorf("got %q, %v", got, err)
	}
	foreign.check(t)
	if len(foreign.seen) != 1 {
		t.Errorf("%d requests to the other host", len(foreign.seen))
	}
}

// TestScheme: what the name of a registry decides. Empty is decided by asking.
func TestScheme(t *testing.T) {
	for host, want := range map[string]string{
		"127.0.0.1:5000": "", "localhost": "", "[::1]:80": "", "127.0.0.1:81": "http",
		"plain.example": "http", "plain.example:81": "http", "port.example:5000": "http",
		"port.example": "https", "registry.example": "https", "localhost.example": "https", "docker.io": "https",
	} {
		r := &Repository{Host: host, Name: "a", PlainHTTP: []string{"plain.example", "port.example:5000", "127.0.0.1:81"}}
		if err := r.Open(); err != nil {
			t.Fatal(err)
		}
		if r.scheme != want {
			t.Errorf("%s is spoken to in %q, want %q", host, r.scheme, want)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	for _, r := range []*Repository{{Host: "a/b", Name: "a"}, {Host: "a:b", Name: "a"}, {Host: "a@b", Name: "a"}, {Name: "a"}, {Host: "a"}, {Host: "a", Name: "../b"}, {Host: "a", Name: "b?c"}} {
		if err := r.Open(); err == nil {
			t.Errorf("%s/%s was accepted", r.Host, r.Name)
		}
	}
}

func TestManifestErrors(t *testing.T) {
	tests := []struct {
		name   string
		answer http.HandlerFunc
		want   error // nil: any
		text   string
	}{
		{"not there", func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(404)
			fmt.Fprint(w, `{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}`)
		}, ErrNotFound, "manifest unknown"},
		{"forbidden", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(403) }, ErrUnauthorized, "403"},
		{"server error", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(503) }, ErrUnavailable, "503"},
		{"too many requests", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(429) }, ErrUnavailable, "429"},
		{"connection cut", func(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) }, ErrUnavailable, ""},
		{"ends early", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "100")
			fmt.Fprint(w, body)
		}, ErrUnavailable, ""},
		{"lies in its header", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Docker-Content-Digest", digest.FromString("x").String())
			fmt.Fprint(w, body)
		}, nil, "lies"},
		{"endless", func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.CopyN(w, endless{}, 3*MaxManifest)
		}, nil, "larger than"},
		{"teapot", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(418) }, nil, "unexpected answer"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := get(t, open(t, serve(t, test.answer), nil))
			if err == nil || test.want != nil && !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.text) {
				t.Errorf("got %v, want %v with %q", err, test.want, test.text)
			}
		})
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestDown(t *testing.T) {
	s := httptest.NewServer(http.NotFoundHandler())
	r := open(t, s, nil)
	s.Close()
	if _, err := get(t, r); !errors.Is(err, ErrUnavailable) {
		t.Errorf("got %v, want ErrUnavailable", err)
	}
}

// TestServerRecovers: one bad answer is not the end.
func TestServerRecovers(t *testing.T) {
	var asked int
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if asked++; asked < tries {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		fmt.Fprint(w, body)
	})
	if _, err := get(t, open(t, s, nil)); err != nil {
		t.Error(err)
	}
}

func TestManifestByDigest(t *testing.T) {
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json; charset=utf-8")
		fmt.Fprint(w, body)
	})
	r := open(t, s, nil)
	m, err := r.Manifest(context.Background(), digest.FromString(body).String(), nil)
	if err != nil || m.MediaType != "application/json" || string(m.Bytes) != body {
		t.Errorf("got %+v, %v", m, err)
	}
	if _, err := r.Manifest(context.Background(), digest.FromString("x").String(), nil); err == nil {
		t.Error("another digest was accepted")
	}
}

// TestSilence: a server that takes the connection and says nothing more, in the
// headers or in the body, is left after Timeout; the caller's own deadline
// stays the caller's.
func TestSilence(t *testing.T) {
	for _, headers := range []bool{false, true} {
		t.Run(fmt.Sprint("headers ", headers), func(t *testing.T) {
			end := make(chan struct{})
			s := serve(t, func(w http.ResponseWriter, r *http.Request) {
				if headers {
					w.Header().Set("Content-Length", "100")
					w.WriteHeader(http.StatusOK)
					_, _ = w.Write([]byte("x"))
					w.(http.Flusher).Flush()
				}
				select {
				case <-end:
				case <-r.Context().Done():
				}
			})
			defer close(end)
			r := open(t, s, func(r *Repository) { r.Timeout = 50 * time.Millisecond })
			_, err := get(t, r)
			if !errors.Is(err, ErrUnavailable) || !errors.Is(err, errStalled) {
				t.Errorf("got %v, want ErrUnavailable for no progress", err)
			}
			patient := open(t, s, nil)
			for range 20 {
				ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
				_, err = patient.Manifest(ctx, "tag", nil)
				cancel()
				if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrUnavailable) {
					t.Fatalf("got %v, want DeadlineExceeded alone", err)
				}
			}
		})
	}
}
