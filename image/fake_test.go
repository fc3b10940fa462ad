package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// fake is a registry in memory. Its answers can be replaced one by one.
type fake struct {
	*httptest.Server
	mu        sync.Mutex
	blobs     map[digest.Digest][]byte
	manifests map[string]stored // by "name:tag" and "name@digest"
	asked     map[string]int    // by path
	// instead answers in the place of the registry when it returns true.
	instead func(w http.ResponseWriter, r *http.Request) bool
}

type stored struct {
	mediaType string
	data      []byte
}

func newFake(t testing.TB) *fake {
	f := &fake{blobs: map[digest.Digest][]byte{}, manifests: map[string]stored{}, asked: map[string]int{}}
	f.Server = httptest.NewServer(f)
	t.Cleanup(f.Close)
	return f
}

// host is the registry's name in references.
func (f *fake) host() string { return strings.TrimPrefix(f.URL, "http://") }

// misbehave makes h answer whenever it returns true; nil ends that.
func (f *fake) misbehave(h func(w http.ResponseWriter, r *http.Request) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.instead = h
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	f.asked[r.URL.Path]++
	instead := f.instead
	f.mu.Unlock()
	if instead != nil && instead(w, r) {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	path := strings.TrimPrefix(r.URL.Path, "/v2/")
	if name, ref, ok := strings.Cut(path, "/manifests/"); ok {
		sep := ":"
		if strings.Contains(ref, ":") {
			sep = "@"
		}
		if m, ok := f.manifests[name+sep+ref]; ok {
			w.Header().Set("Content-Type", m.mediaType)
			w.Header().Set("Docker-Content-Digest", digest.FromBytes(m.data).String())
			_, _ = w.Write(m.data)
			return
		}
	}
	if _, d, ok := strings.Cut(path, "/blobs/"); ok {
		if data, ok := f.blobs[digest.Digest(d)]; ok {
			http.ServeContent(w, r, "", timeZero, bytes.NewReader(data))
			return
		}
	}
	w.WriteHeader(http.StatusNotFound)
	fmt.Fprint(w, `{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}`)
}

// count is how often paths with part in them were asked for.
func (f *fake) count(part string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for path, c := range f.asked {
		if strings.Contains(path, part) {
			n += c
		}
	}
	return n
}

func (f *fake) blob(data []byte) digest.Digest {
	f.mu.Lock()
	defer f.mu.Unlock()
	d := digest.FromBytes(data)
	f.blobs[d] = data
	return d
}

// manifest stores a document under its digest and under tag, if that is set.
func (f *fake) manifest(name, tag, mediaType string, doc any) ocispec.Descriptor {
	data, ok := doc.([]byte)
	if !ok {
		data = must(json.Marshal(doc))
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	d := digest.FromBytes(data)
	f.manifests[name+"@"+d.String()] = stored{mediaType, data}
	if tag != "" {
		f.manifests[name+":"+tag] = stored{mediaType, data}
	}
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(data))}
}

// spec describes an image to be put into a fake registry.
type spec struct {
	layers   [][]byte // tars, base first
	compress func([]byte) []byte
	docker   bool
	platform ocispec.Platform // zero: this machine's
	salt     string           // makes the config another one
}

// image puts an image into the registry and returns its manifest.
func (f *fake) image(name, tag string, s spec) ocispec.Descriptor {
	if s.compress == nil {
		s.compress = gzipped
	}
	manifestType, configType, layerType := ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageConfig, ocispec.MediaTypeImageLayerGzip
	if s.docker {
		manifestType, configType, layerType = dockerManifest, dockerConfig, dockerLayer+".gzip"
	}
	if s.platform.OS == "" {
		s.platform = ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}
	}
	config := ocispec.Image{Platform: s.platform, Author: s.salt, RootFS: ocispec.RootFS{Type: "layers"}}
	config.Config.Cmd = []string{"/bin/sh"}
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: manifestType}
	for _, l := range s.layers {
		compressed := s.compress(l)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromBytes(l))
		m.Layers = append(m.Layers, ocispec.Descriptor{MediaType: layerType, Digest: f.blob(compressed), Size: int64(len(compressed))})
	}
	data := must(json.Marshal(config))
	m.Config = ocispec.Descriptor{MediaType: configType, Digest: f.blob(data), Size: int64(len(data))}
	d := f.manifest(name, tag, manifestType, m)
	d.Platform = &s.platform
	return d
}

// index puts an index over manifests into the registry.
func (f *fake) index(name, tag, mediaType string, manifests ...ocispec.Descriptor) ocispec.Descriptor {
	return f.manifest(name, tag, mediaType, ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: mediaType, Manifests: manifests})
}

// files is a tar of files, given as name and content in turn.
func files(pairs ...string) []byte {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for i := 0; i < len(pairs); i += 2 {
		check(w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: pairs[i], Mode: 0o644, Size: int64(len(pairs[i+1]))}))
		must(w.Write([]byte(pairs[i+1])))
	}
	check(w.Close())
	return buf.Bytes()
}

// noise is n bytes of text that does not compress well.
func noise(n int, seed string) string {
	var b strings.Builder
	for i := 0; b.Len() < n; i++ {
		b.WriteString(digest.FromString(seed + strconv.Itoa(i)).Encoded())
	}
	return b.String()[:n]
}

// gzipped compresses a little only: with the race detector the rest takes seconds.
func gzipped(data []byte) []byte {
	var buf bytes.Buffer
	w := must(gzip.NewWriterLevel(&buf, gzip.BestSpeed))
	must(w.Write(data))
	check(w.Close())
	return buf.Bytes()
}

func zstded(data []byte) []byte {
	w := must(zstd.NewWriter(nil))
	defer w.Close()
	return w.EncodeAll(data, nil)
}

func plain(data []byte) []byte { return data }

// must and check are for what cannot fail in a test's own preparation.
func must[T any](v T, err error) T {
	check(err)
	return v
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}
