package image

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"berth/image/layer"
)

// dripping lets all blobs of a registry, but for configs, begin and never end.
// It returns how to wait until n of them have begun.
func (f *fake) dripping(t *testing.T) (begun func(n int)) {
	began := make(chan struct{}, 100)
	f.misbehave(func(w http.ResponseWriter, r *http.Request) bool {
		_, d, ok := strings.Cut(r.URL.Path, "/blobs/")
		f.mu.Lock()
		config := strings.HasPrefix(string(f.blobs[digest.Digest(d)]), "{")
		f.mu.Unlock()
		if !ok || config {
			return false
		}
		_, _ = w.Write([]byte{0x1f})
		w.(http.Flusher).Flush()
		began <- struct{}{}
		<-r.Context().Done()
		return true
	})
	return func(n int) {
		for range n {
			select {
			case <-began:
			case <-t.Context().Done():
			}
		}
	}
}

// soon is a context for what must not wait for a dripping registry.
func soon(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// background starts a pull that the test's end cancels.
func background(t *testing.T, s *Store, ref string) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = s.Pull(ctx, Pull{Ref: ref})
	}()
	t.Cleanup(func() { cancel(); <-done })
}

func manyFiles(n int, seed string) (layers [][]byte) {
	for i := range n {
		layers = append(layers, files("f", noise(1000, fmt.Sprint(seed, i))))
	}
	return layers
}

// TestDrippingRegistryBlocksNobody: images of a registry that feeds its layers
// with drops take no slot from another registry, nor from another image.
func TestDrippingRegistryBlocksNobody(t *testing.T) {
	slow, fast, s := newFake(t), newFake(t), newStore(t)
	s.SetRegistries(Registries{Timeout: time.Minute})
	for i := range 3 {
		slow.image("a", fmt.Sprint("v", i), spec{layers: manyFiles(10, fmt.Sprint("slow", i))})
	}
	begun := slow.dripping(t)
	for i := range 3 {
		background(t, s, fmt.Sprintf("%s/a:v%d", slow.host(), i))
	}
	begun(perRegistry + 1)
	fast.image("b", "v1", spec{layers: manyFiles(10, "fast")})
	if _, err := s.Pull(soon(t), Pull{Ref: fast.host() + "/b:v1"}); err != nil {
		t.Errorf("another registry: %v", err)
	}
	slow.misbehave(nil)
	slow.image("b", "v1", spec{layers: manyFiles(10, "other")})
	if _, err := s.Pull(soon(t), Pull{Ref: slow.host() + "/b:v1"}); err != nil {
		t.Errorf("another image: %v", err)
	}
}

// TestPromiseBlocksNobody: an image claims to have a popular layer and never
// delivers it; whoever gets the layer from elsewhere does not wait for that.
func TestPromiseBlocksNobody(t *testing.T) {
	base := files("base", noise(100_000, "base"))
	for name, compress := range map[string]func([]byte) []byte{"as another blob": zstded, "as the same blob": gzipped} {
		t.Run(name, func(t *testing.T) {
			liar, honest, s := newFake(t), newFake(t), newStore(t)
			s.SetRegistries(Registries{Timeout: time.Minute})
			liar.image("a", "v1", spec{layers: [][]byte{base}, compress: compress})
			begun := liar.dripping(t)
			background(t, s, liar.host()+"/a:v1")
			begun(1)
			honest.image("base", "v1", spec{layers: [][]byte{base}})
			if _, err := s.Pull(soon(t), Pull{Ref: honest.host() + "/base:v1"}); err != nil {
				t.Errorf("got %v", err)
			}
		})
	}
}

// TestPromisePinsNothing: a pull under way that only names a layer does not keep
// it when its image is removed.
func TestPromisePinsNothing(t *testing.T) {
	liar, honest, s := newFake(t), newFake(t), newStore(t)
	s.SetRegistries(Registries{Timeout: time.Minute})
	base := files("base", noise(1000, "base"))
	honest.image("base", "v1", spec{layers: [][]byte{base}})
	pull(t, s, honest.host()+"/base:v1")
	liar.image("a", "v1", spec{layers: [][]byte{base}, compress: zstded})
	begun := liar.dripping(t)
	background(t, s, liar.host()+"/a:v1")
	begun(1)
	remove(t, s, honest.host()+"/base:v1")
	s.work.Wait()
	if left := must(list(s.path(layersDir))); len(left) != 0 {
		t.Errorf("still there: %q", left)
	}
}

// TestPromiseKeptElsewhere: two registries deliver the same layer at once, and
// both pulls succeed.
func TestPromiseKeptElsewhere(t *testing.T) {
	s := newStore(t)
	base := files("base", noise(300_000, "base"))
	var all sync.WaitGroup
	for i := range 6 {
		f := newFake(t)
		f.image("a", "v1", spec{layers: [][]byte{base}, compress: []func([]byte) []byte{gzipped, zstded, plain}[i%3]})
		all.Go(func() {
			if _, err := s.Pull(soon(t), Pull{Ref: f.host() + "/a:v1"}); err != nil {
				t.Errorf("registry %d: %v", i, err)
			}
		})
	}
	all.Wait()
	if n := len(must(list(s.path(layersDir)))); n != 1 {
		t.Errorf("%d layers", n)
	}
}

// TestLayerNeedsProof: a layer that is here belongs to an image only if the
// image's own blob was proven to be it, here, before or after a restart.
func TestLayerNeedsProof(t *testing.T) {
	f, s := newFake(t), newStore(t)
	secret := files("secret", noise(1000, "secret"))
	f.image("private", "v1", spec{layers: [][]byte{secret}})
	pull(t, s, f.host()+"/private:v1")
	stolen := f.image("stolen", "v1", spec{layers: [][]byte{secret}, compress: func([]byte) []byte { return []byte("never that layer") }})
	for range 2 {
		if _, err := s.Pull(t.Context(), Pull{Ref: f.host() + "/stolen:v1"}); !errors.Is(err, ErrInvalidImage) {
			t.Errorf("a config named the layer and the image has it: %v", err)
		}
		if _, err := s.Image(f.host() + "/stolen@" + stolen.Digest.String()); !errors.Is(err, ErrNotFound) {
			t.Errorf("found: %v", err)
		}
		s = reopen(t, s)
	}
	// The same layer in another compression is proven once, by its own blob.
	f.image("again", "v1", spec{layers: [][]byte{secret}, compress: zstded})
	f.image("again", "v2", spec{layers: [][]byte{secret}, compress: zstded, salt: "2"})
	pull(t, s, f.host()+"/again:v1")
	s = reopen(t, s)
	pull(t, s, f.host()+"/again:v2")
	for _, blob := range [][]byte{gzipped(secret), zstded(secret)} {
		if n := f.count("/blobs/" + digest.FromBytes(blob).String()); n != 1 {
			t.Errorf("a blob was fetched %d times", n)
		}
	}
}

// TestLayerWithoutProofs: a layer of a store that kept no proofs is fetched
// again, and its proof is kept.
func TestLayerWithoutProofs(t *testing.T) {
	f, s := newFake(t), newStore(t)
	tar := files("f", "x")
	f.image("a", "v1", spec{layers: [][]byte{tar}})
	img := pull(t, s, f.host()+"/a:v1")
	meta := filepath.Join(s.layerPath(img.Layers[0]), "meta.json")
	check(os.WriteFile(meta, fmt.Appendf(nil, `{"size":%d}`, len(tar)), 0o600))
	s = reopen(t, s)
	for range 2 {
		pull(t, s, f.host()+"/a:v1")
		s = reopen(t, s)
	}
	if n := f.count("/blobs/" + digest.FromBytes(gzipped(tar)).String()); n != 2 {
		t.Errorf("fetched %d times, want 2", n)
	}
}

// TestProofsAreBounded: somebody who repacks one layer again and again makes no
// list grow.
func TestProofsAreBounded(t *testing.T) {
	f, s := newFake(t), newStore(t)
	f.image("a", "v1", spec{layers: [][]byte{files("f", "x")}})
	img := pull(t, s, f.host()+"/a:v1")
	for i := range maxProofs + 3 {
		p := layer.Declared{Digest: digest.FromString(fmt.Sprint(i)), DiffID: img.Layers[0]}
		unlock := must(s.lockLayer(t.Context(), p.DiffID))
		check(s.addProof(p))
		unlock()
		s.mu.Lock()
		proven := s.provenLocked(p)
		s.mu.Unlock()
		if !proven {
			t.Errorf("proof %d is forgotten", i)
		}
	}
	var meta layerMeta
	check(readJSON(filepath.Join(s.layerPath(img.Layers[0]), "meta.json"), &meta))
	if len(meta.Blobs) != maxProofs {
		t.Errorf("%d proofs", len(meta.Blobs))
	}
}

// TestTwoBlobsOfOneLayer: an image has one layer twice, and each of its blobs
// must be that layer.
func TestTwoBlobsOfOneLayer(t *testing.T) {
	f, s := newFake(t), newStore(t)
	tar, n := files("f", "x"), 0
	compress := func(data []byte) []byte {
		if n++; n%2 == 1 {
			return gzipped(data)
		}
		return []byte("never that layer")
	}
	f.image("a", "v1", spec{layers: [][]byte{tar, tar}, compress: compress})
	if _, err := s.Pull(t.Context(), Pull{Ref: f.host() + "/a:v1"}); !errors.Is(err, ErrInvalidImage) {
		t.Errorf("got %v", err)
	}
	compress = func(data []byte) []byte {
		if n++; n%2 == 1 {
			return gzipped(data)
		}
		return zstded(data)
	}
	f.image("a", "v2", spec{layers: [][]byte{tar, tar}, compress: compress})
	var watch Watch
	if _, err := s.Pull(t.Context(), Pull{Ref: f.host() + "/a:v2", Watch: &watch}); err != nil {
		t.Error(err)
	}
	if all := watch.Layers(); len(all) != 2 || all[1].Phase != Done {
		t.Errorf("shown as %v", all)
	}
}
