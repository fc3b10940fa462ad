package registry

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const layerType = "application/vnd.oci.image.layer.v1.tar"

// Registry serves what was pushed, to anybody.
type Registry struct {
	server *httptest.Server

	mu      sync.Mutex
	content map[string]ocispec.Descriptor // path of a request to what it answers
	blobs   map[digest.Digest][]byte
	fault   func(w http.ResponseWriter, r *http.Request) bool
}

// Start serves until the test ends.
func Start(t testing.TB) *Registry {
	r := &Registry{content: map[string]ocispec.Descriptor{}, blobs: map[digest.Digest][]byte{}}
	r.server = httptest.NewServer(r)
	t.Cleanup(r.server.Close)
	return r
}

// Host is how references name the registry.
func (r *Registry) Host() string { return strings.TrimPrefix(r.server.URL, "http://") }

// Misbehave lets fault answer each request first; if it returns false the
// registry answers as it should. Nil ends it.
func (r *Registry) Misbehave(fault func(w http.ResponseWriter, r *http.Request) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fault = fault
}

func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	fault := r.fault
	d, known := r.content[req.URL.Path]
	data := r.blobs[d.Digest]
	r.mu.Unlock()
	switch {
	case fault != nil && fault(w, req):
	case req.URL.Path == "/v2/":
	case !known:
		http.NotFound(w, req)
	default:
		w.Header().Set("Content-Type", d.MediaType)
		w.Header().Set("Docker-Content-Digest", d.Digest.String())
		http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(data))
	}
}

// Push puts an image of one layer, a tar, under the tags. It returns the image's
// reference by digest.
func (r *Registry) Push(t testing.TB, repository string, layer []byte, config ocispec.ImageConfig, tags ...string) (byDigest string) {
	t.Helper()
	return r.PushLayers(t, repository, [][]byte{layer}, config, tags...)
}

// PushLayers is Push of any number of layers, base first.
func (r *Registry) PushLayers(t testing.TB, repository string, layers [][]byte, config ocispec.ImageConfig, tags ...string) (byDigest string) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	var diffIDs []digest.Digest
	var blobs []ocispec.Descriptor
	for _, layer := range layers {
		l := r.blobLocked(repository, layerType, layer)
		diffIDs, blobs = append(diffIDs, l.Digest), append(blobs, l)
	}
	c := r.blobLocked(repository, ocispec.MediaTypeImageConfig, encode(t, ocispec.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH},
		Config:   config,
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: diffIDs},
	}))
	manifest := r.blobLocked(repository, ocispec.MediaTypeImageManifest, encode(t, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: c, Layers: blobs,
	}))
	for _, name := range append(tags, manifest.Digest.String()) {
		r.content["/v2/"+repository+"/manifests/"+name] = manifest
	}
	return r.Host() + "/" + repository + "@" + manifest.Digest.String()
}

// Blob puts any data among a repository's blobs.
func (r *Registry) Blob(repository, mediaType string, data []byte) ocispec.Descriptor {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.blobLocked(repository, mediaType, data)
}

// Manifest puts any data where a repository's manifest is looked for.
func (r *Registry) Manifest(repository, tag string, data []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := r.blobLocked(repository, ocispec.MediaTypeImageManifest, data)
	r.content["/v2/"+repository+"/manifests/"+tag] = m
}

func (r *Registry) blobLocked(repository, mediaType string, data []byte) ocispec.Descriptor {
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	r.blobs[d.Digest] = data
	r.content["/v2/"+repository+"/blobs/"+d.Digest.String()] = d
	return d
}

func encode(t testing.TB, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// Layer is a tar of these entries. Content is that of regular files.
func Layer(t testing.TB, entries ...Entry) []byte {
	t.Helper()
	size := 2 << 10 // more than the end of a tar
	for _, e := range entries {
		size += 1<<10 + len(e.Content)
	}
	buf := bytes.NewBuffer(make([]byte, 0, size))
	w := tar.NewWriter(buf)
	for _, e := range entries {
		e.Header.Size = int64(len(e.Content))
		if err := w.WriteHeader(&e.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(e.Content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// Entry is one member of a layer.
type Entry struct {
	tar.Header
	Content []byte
}

// File, Dir and Link are the entries that most layers are made of.
func File(name string, mode int64, content string) Entry {
	return Entry{tar.Header{Name: name, Mode: mode}, []byte(content)}
}

func Dir(name string, mode int64) Entry {
	return Entry{tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: mode}, nil}
}

func Link(name, target string) Entry {
	return Entry{tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}, nil}
}

// HardLink is another name of a file that came before.
func HardLink(name, target string) Entry {
	return Entry{tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target}, nil}
}
