package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// TestPullFormats pulls each kind of image by tag and by digest, and finds it by
// every name, before and after a restart.
func TestPullFormats(t *testing.T) {
	layers := [][]byte{files("a", "base"), files("b", noise(300_000, "b")), files("a", "top")}
	tests := map[string]spec{
		"oci, gzip":    {layers: layers},
		"oci, zstd":    {layers: layers, compress: zstded},
		"oci, plain":   {layers: layers, compress: plain},
		"docker":       {layers: layers, docker: true},
		"one layer":    {layers: layers[:1]},
		"no layer":     {},
		"twice a":      {layers: [][]byte{layers[0], layers[1], layers[0]}},
		"empty layers": {layers: [][]byte{files(), layers[0], files()}},
	}
	for name, sp := range tests {
		for _, indexed := range []bool{false, true} {
			t.Run(fmt.Sprint(name, ", indexed ", indexed), func(t *testing.T) {
				f, s := newFake(t), newStore(t)
				target := f.image("a/b", "v1", sp)
				if indexed {
					kind := ocispec.MediaTypeImageIndex
					if sp.docker {
						kind = dockerList
					}
					other := f.image("a/b", "", spec{platform: ocispec.Platform{OS: "linux", Architecture: "s390x"}})
					target = f.index("a/b", "v1", kind, other, target)
				}
				tag := f.host() + "/a/b:v1"
				byDigest := f.host() + "/a/b@" + target.Digest.String()
				img := pull(t, s, tag)
				if !slices.Equal(img.Tags, []string{tag}) || !slices.Equal(img.Digests, []string{byDigest}) {
					t.Errorf("tags %q, digests %q", img.Tags, img.Digests)
				}
				if len(img.Layers) != len(sp.layers) || img.Size == 0 || img.Config.Config.Cmd == nil || img.Created.IsZero() {
					t.Errorf("image is %+v", img)
				}
				if again := pull(t, s, byDigest); again.ID != img.ID {
					t.Errorf("by digest it is %s, by tag %s", again.ID, img.ID)
				}
				for range 2 {
					for _, ref := range []string{tag, byDigest, tag + "@" + target.Digest.String(), img.ID.String(), img.ID.Encoded(), img.ID.Encoded()[:12], "sha256:" + img.ID.Encoded()[:4]} {
						if got, err := s.Image(ref); err != nil || got.ID != img.ID {
							t.Errorf("Image(%q): %v, %v", ref, got, err)
						}
					}
					s = reopen(t, s)
				}
			})
		}
	}
}

func TestImageNotFound(t *testing.T) {
	f, s := newFake(t), newStore(t)
	f.image("a", "v1", spec{})
	img := pull(t, s, f.host()+"/a:v1")
	for ref, want := range map[string]error{
		"":                           ErrInvalidReference,
		"UPPER":                      ErrInvalidReference,
		"a:b:c":                      ErrInvalidReference,
		"../etc":                     ErrInvalidReference,
		"busybox":                    ErrNotFound,
		f.host() + "/a":              ErrNotFound,
		img.ID.Encoded()[:3]:         ErrNotFound,
		"sha256:" + noise(64, "x"):   ErrNotFound,
		"a@sha256:" + noise(64, ""):  ErrNotFound,
		"a@sha256:1234":              ErrInvalidReference,
		"a@sha512:" + noise(128, ""): ErrInvalidReference,
		strings.Repeat("x", 8<<20):   ErrInvalidReference, // parsing it would take a minute, with the store locked
	} {
		if _, err := s.Image(ref); !errors.Is(err, want) {
			t.Errorf("Image(%.100q): %v, want %v", ref, err, want)
		}
	}
	for _, ref := range []string{"", "UPPER", "a@sha512:" + noise(128, "")} {
		if _, err := s.Pull(context.Background(), Pull{Ref: ref}); !errors.Is(err, ErrInvalidReference) {
			t.Errorf("Pull(%q): %v", ref, err)
		}
	}
}

// TestPullFails: whatever the registry does, the error tells it, nothing is
// left, and the next pull works.
func TestPullFails(t *testing.T) {
	big := files("big", noise(2<<20, "big"))
	compressed := gzipped(big)
	onBlob := func(h func(w http.ResponseWriter, r *http.Request)) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, "/blobs/"+digest.FromBytes(compressed).String()) {
				return false
			}
			h(w, r)
			return true
		}
	}
	always := func(code int) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool { w.WriteHeader(code); return true }
	}
	tests := []struct {
		name    string
		instead func(http.ResponseWriter, *http.Request) bool
		want    error // nil: any
	}{
		{"not found", always(404), ErrNotFound},
		{"unauthorized", always(401), ErrUnauthorized},
		{"forbidden", always(403), ErrUnauthorized},
		{"server error", always(500), ErrRegistryUnavailable},
		{"layer not found", onBlob(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(404) }), ErrNotFound},
		{"layer ends early", onBlob(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", strconv.Itoa(len(compressed)))
			_, _ = w.Write(compressed[:1000])
		}), ErrRegistryUnavailable},
		{"layer is another", onBlob(func(w http.ResponseWriter, r *http.Request) {
			other := slices.Clone(compressed)
			other[len(other)-5] ^= 1
			_, _ = w.Write(other)
		}), nil},
		{"layer is larger", onBlob(func(w http.ResponseWriter, r *http.Request) {
			_, _ = w.Write(append(slices.Clone(compressed), 0))
		}), nil},
		{"layer is silent", onBlob(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", strconv.Itoa(len(compressed)))
			_, _ = w.Write(compressed[:10])
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}), ErrRegistryUnavailable},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			f, s := newFake(t), newStore(t)
			if test.name == "layer is silent" {
				s.SetRegistries(Registries{Timeout: time.Second})
			}
			f.image("a", "v1", spec{layers: [][]byte{files("small", "x"), big, files("small", "y")}})
			f.misbehave(test.instead)
			_, err := s.Pull(context.Background(), Pull{Ref: f.host() + "/a:v1"})
			if err == nil || test.want != nil && !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
			s.empty(t)
			f.misbehave(nil)
			pull(t, s, f.host()+"/a:v1")
		})
	}
}

func TestPullRegistryDown(t *testing.T) {
	f, s := newFake(t), newStore(t)
	f.Close()
	if _, err := s.Pull(context.Background(), Pull{Ref: f.host() + "/a"}); !errors.Is(err, ErrRegistryUnavailable) {
		t.Errorf("got %v", err)
	}
	s.empty(t)
}

// TestPullResumes: a connection that breaks again and again costs no byte twice.
func TestPullResumes(t *testing.T) {
	f, s := newFake(t), newStore(t)
	big := files("big", noise(2<<20, "big"))
	compressed := gzipped(big)
	f.image("a", "v1", spec{layers: [][]byte{big}})
	f.misbehave(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, digest.FromBytes(compressed).String()) {
			return false
		}
		from := 0
		if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from); err == nil {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(compressed)-1, len(compressed)))
			w.Header().Set("Content-Length", strconv.Itoa(len(compressed)-from))
			w.WriteHeader(http.StatusPartialContent)
		}
		_, _ = w.Write(compressed[from:min(from+300_000, len(compressed))])
		if from+300_000 < len(compressed) {
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}
		return true
	})
	pull(t, s, f.host()+"/a:v1")
	if n := f.count("/blobs/" + digest.FromBytes(compressed).String()); n < 4 {
		t.Errorf("asked %d times: nothing was resumed", n)
	}
}

// TestPullDeadline: the caller's deadline is told as such, however short.
func TestPullDeadline(t *testing.T) {
	f, s := newFake(t), newStore(t)
	f.image("a", "v1", spec{layers: [][]byte{files("big", noise(4<<20, ""))}})
	for range 10 {
		ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
		_, err := s.Pull(ctx, Pull{Ref: f.host() + "/a:v1"})
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("got %v, want DeadlineExceeded", err)
		}
		s.empty(t)
	}
}

// TestPullCancelled with one layer done and one under way: nothing stays, and
// nobody works on.
func TestPullCancelled(t *testing.T) {
	f, s := newFake(t), newStore(t)
	slow := files("slow", noise(100_000, "slow"))
	slowBlob := digest.FromBytes(gzipped(slow)).String()
	f.image("a", "v1", spec{layers: [][]byte{files("fast", "x"), slow}})
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var watch Watch
	f.misbehave(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, slowBlob) {
			return false
		}
		watch.until(t, func(l []LayerProgress) bool { return l[0].Phase == Done })
		cancel()
		<-r.Context().Done()
		return true
	})
	_, err := s.Pull(ctx, Pull{Ref: f.host() + "/a:v1", Watch: &watch})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	s.empty(t)
}

// TestPullsJoin: many pulls of images that share layers fetch each blob once,
// and keep one layer of those that are the same.
func TestPullsJoin(t *testing.T) {
	f, s := newFake(t), newStore(t)
	shared := files("shared", noise(500_000, "s"))
	f.image("a", "v1", spec{layers: [][]byte{shared, files("a", "a")}})
	f.image("b", "v1", spec{layers: [][]byte{shared, files("b", "b")}, compress: zstded})
	var all sync.WaitGroup
	for i := range 12 {
		all.Go(func() {
			ref := f.host() + []string{"/a:v1", "/b:v1"}[i%2]
			if _, err := s.Pull(context.Background(), Pull{Ref: ref}); err != nil {
				t.Errorf("pull: %v", err)
			}
		})
	}
	all.Wait()
	for _, blob := range [][]byte{gzipped(shared), zstded(shared)} {
		if n := f.count(digest.FromBytes(blob).String()); n != 1 {
			t.Errorf("a shared blob was fetched %d times", n)
		}
	}
	if got := len(must(list(s.path(layersDir)))); got != 3 {
		t.Errorf("%d layers", got)
	}
}

// TestJoinedPullOutlivesTheFirst: the one that fetches a layer is cancelled; the
// one that waited for it fetches it itself.
func TestJoinedPullOutlivesTheFirst(t *testing.T) {
	f, s := newFake(t), newStore(t)
	big := files("big", noise(500_000, "s"))
	f.image("a", "v1", spec{layers: [][]byte{big}})
	layer := digest.FromBytes(gzipped(big)).String()
	begun, second := make(chan struct{}), make(chan struct{})
	var once sync.Once
	f.misbehave(func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/manifests/") && f.count("/manifests/") == 2 {
			close(second)
		}
		first := false
		if strings.Contains(r.URL.Path, layer) {
			once.Do(func() { first = true })
		}
		if first {
			close(begun)
			<-r.Context().Done()
		}
		return first
	})
	ctx, cancel := context.WithCancel(context.Background())
	firstDone := make(chan error, 1)
	go func() {
		_, err := s.Pull(ctx, Pull{Ref: f.host() + "/a:v1"})
		firstDone <- err
	}()
	<-begun
	secondDone := make(chan error, 1)
	go func() {
		_, err := s.Pull(context.Background(), Pull{Ref: f.host() + "/a:v1"})
		secondDone <- err
	}()
	<-second
	cancel()
	if err := <-firstDone; !errors.Is(err, context.Canceled) {
		t.Errorf("first: %v", err)
	}
	if err := <-secondDone; err != nil {
		t.Errorf("second: %v", err)
	}
}

// TestPullAuthorized: the credential of the pull reaches the registry.
func TestPullAuthorized(t *testing.T) {
	f, s := newFake(t), newStore(t)
	f.image("a", "v1", spec{layers: [][]byte{files("a", "a")}})
	f.misbehave(func(w http.ResponseWriter, r *http.Request) bool {
		if user, password, _ := r.BasicAuth(); user == "me" && password == "secret" {
			return false
		}
		w.Header().Set("WWW-Authenticate", "Basic")
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	ref := f.host() + "/a:v1"
	for _, a := range []Auth{{}, {Username: "me", Password: "wrong"}, {Username: "me", Password: "secret", ServerAddress: "elsewhere.example"}} {
		if _, err := s.Pull(context.Background(), Pull{Ref: ref, Auth: a}); !errors.Is(err, ErrUnauthorized) {
			t.Errorf("got %v", err)
		}
	}
	if _, err := s.Pull(context.Background(), Pull{Ref: ref, Auth: Auth{Username: "me", Password: "secret"}}); err != nil {
		t.Error(err)
	}
	if _, err := s.Pull(context.Background(), Pull{Ref: ref}); !errors.Is(err, ErrUnauthorized) {
		t.Errorf("an image of the store was given to who may not pull it: %v", err)
	}
}

// TestHostileLayer: a layer that cannot be extracted safely is no image.
func TestHostileLayer(t *testing.T) {
	f, s := newFake(t), newStore(t)
	f.image("a", "v1", spec{layers: [][]byte{files("ok", "x"), files("../../escape", "x")}})
	if _, err := s.Pull(context.Background(), Pull{Ref: f.host() + "/a:v1"}); !errors.Is(err, ErrInvalidImage) {
		t.Errorf("got %v, want ErrInvalidImage", err)
	}
	s.empty(t)
}

// TestPullErrorsArePrintable: whatever an image says of itself, the error that
// repeats it is short and has no escape sequence, no line of its own, and no
// query of a URL.
func TestPullErrorsArePrintable(t *testing.T) {
	const evil = "\x1b[2J\nE1201 forged\u202e https://s3.example/x?X-Amz-Signature=hunter2 "
	platform := func(n int) (all []ocispec.Descriptor) {
		for i := range n {
			d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString(fmt.Sprint(i))}
			d.Platform = &ocispec.Platform{OS: "linux" + evil, Architecture: fmt.Sprint(i), Variant: evil}
			all = append(all, d)
		}
		return all
	}
	put := func(f *fake, d doc) { f.manifest("a", "v1", ocispec.MediaTypeImageManifest, d) }
	for name, setUp := range map[string]func(f *fake){
		"platforms":        func(f *fake) { f.index("a", "v1", ocispec.MediaTypeImageIndex, platform(1000)...) },
		"platform":         func(f *fake) { f.image("a", "v1", spec{platform: ocispec.Platform{OS: evil, Architecture: evil}}) },
		"type":             func(f *fake) { put(f, with(goodManifest(), "mediaType", evil)) },
		"type of config":   func(f *fake) { put(f, with(goodManifest(), "config", descriptor(evil))) },
		"type of artifact": func(f *fake) { put(f, with(with(goodManifest(), "artifactType", evil), "config", nil)) },
		"type of layer":    func(f *fake) { put(f, withLayer("mediaType", evil)) },
		"digest":           func(f *fake) { put(f, withLayer("digest", strings.Repeat(evil, 1000))) },
		"field": func(f *fake) {
			put(f, with(with(goodManifest(), "layers"+evil, 1), "LAYERS"+evil, 1))
			put(f, with(goodManifest(), "config", evil))
		},
		"number": func(f *fake) {
			put(f, with(goodManifest(), "schemaVersion", json.Number("2."+strings.Repeat("1", 5000))))
		},
		"file": func(f *fake) { f.image("a", "v1", spec{layers: [][]byte{files("../"+evil, "x")}}) },
	} {
		t.Run(name, func(t *testing.T) {
			f, s := newFake(t), newStore(t)
			setUp(f)
			_, err := s.Pull(t.Context(), Pull{Ref: f.host() + "/a:v1"})
			if !errors.Is(err, ErrInvalidImage) {
				t.Fatalf("got %v, want ErrInvalidImage", err)
			}
			if text := err.Error(); strings.ContainsAny(text, "\x1b\n\u202e") || strings.Contains(text, "hunter2") || len(text) > 1200 {
				t.Errorf("%d bytes: %.1000q", len(text), text)
			}
		})
	}
}
