package image

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"berth/image/layer"
)

// answering makes the registry give code for one blob.
func (f *fake) answering(code int, blob []byte) {
	path := digest.FromBytes(blob).String()
	f.misbehave(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, path) {
			return false
		}
		w.WriteHeader(code)
		return true
	})
}

// TestFailedPullResumes: whichever of ten layers cannot be had, the others are
// fetched once.
func TestFailedPullResumes(t *testing.T) {
	for _, large := range []int{-1, 9, 0} { // the failing layer is the last; and the first to be fetched
		for _, code := range []int{503, 404} {
			t.Run(fmt.Sprint("large ", large, " code ", code), func(t *testing.T) {
				f, s := newFake(t), newStore(t)
				layers := manyFiles(10, "f")
				failing := 9
				if large >= 0 {
					failing = large
					layers[large] = files("large", noise(50_000, "large"))
				}
				f.image("a", "v1", spec{layers: layers})
				f.answering(code, gzipped(layers[failing]))
				if _, err := s.Pull(t.Context(), Pull{Ref: f.host() + "/a:v1"}); err == nil {
					t.Fatal("succeeded")
				}
				s.check(t)
				if n := len(must(list(s.path(layersDir)))); code == 503 && n < 3 {
					t.Errorf("%d layers were kept", n)
				}
				f.misbehave(nil)
				pull(t, s, f.host()+"/a:v1")
				for i, l := range layers {
					n := f.count("/blobs/" + digest.FromBytes(gzipped(l)).String())
					if i != failing && code == 503 && n != 1 {
						t.Errorf("layer %d was fetched %d times", i, n)
					}
				}
				// What an image has goes with it, not some time later.
				remove(t, s, f.host()+"/a:v1")
				if s.work.Wait(); len(s.layers) != 0 {
					t.Errorf("%d layers outlive their image", len(s.layers))
				}
			})
		}
	}
}

// TestCancelledPullKeeps: so does a pull that nobody waits for any more.
func TestCancelledPullKeeps(t *testing.T) {
	f, s := newFake(t), newStore(t)
	fast, slow := files("fast", "x"), files("slow", noise(100_000, "slow"))
	f.image("a", "v1", spec{layers: [][]byte{fast, slow}})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var watch Watch
	f.misbehave(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, digest.FromBytes(gzipped(slow)).String()) {
			return false
		}
		watch.until(t, func(l []LayerProgress) bool { return l[0].Phase == Done })
		cancel()
		<-r.Context().Done()
		return true
	})
	if _, err := s.Pull(ctx, Pull{Ref: f.host() + "/a:v1", Watch: &watch}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	f.misbehave(nil)
	pull(t, s, f.host()+"/a:v1")
	if n := f.count("/blobs/" + digest.FromBytes(gzipped(fast)).String()); n != 1 {
		t.Errorf("the finished layer was fetched %d times", n)
	}
}

// failed lets a pull fail that has one layer, large, and one that cannot be had.
func failed(t *testing.T, s *Store, f *fake, large []byte) {
	t.Helper()
	missing := files("missing", "x")
	f.image("a", "v1", spec{layers: [][]byte{missing, large}})
	f.answering(503, gzipped(missing))
	if _, err := s.Pull(t.Context(), Pull{Ref: f.host() + "/a:v1"}); !errors.Is(err, ErrRegistryUnavailable) {
		t.Fatalf("got %v", err)
	}
	f.misbehave(nil)
	if n := len(must(list(s.path(layersDir)))); n != 1 {
		t.Fatalf("%d layers were kept", n)
	}
}

// TestKeptLayersExpire: after their time they are deleted by themselves.
func TestKeptLayersExpire(t *testing.T) {
	if keepTime != 15*time.Minute {
		t.Errorf("they stay for %s", keepTime)
	}
	f, s, tar := newFake(t), newStore(t), files("f", "x")
	failed(t, s, f, tar)
	failed(t, s, f, tar) // begins the time anew, and claims once
	s.keepTime = time.Millisecond
	s.keep([]promise{{Declared: layer.Declared{Digest: digest.FromBytes(gzipped(tar)), DiffID: digest.FromBytes(tar)}}})
	gone := func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.layers) == 0
	}
	look := time.NewTicker(time.Millisecond)
	defer look.Stop()
	for !gone() {
		select {
		case <-look.C:
		case <-t.Context().Done():
			return
		}
	}
	s.work.Wait()
	s.empty(t)
}

// TestFailedPullKeepsNothingOfOthers: to name a layer is not to have it, so it
// goes with the image that does.
func TestFailedPullKeepsNothingOfOthers(t *testing.T) {
	f, s := newFake(t), newStore(t)
	secret := files("secret", "x")
	f.image("a", "v1", spec{layers: [][]byte{secret}})
	pull(t, s, f.host()+"/a:v1")
	f.image("b", "v1", spec{layers: [][]byte{secret}, compress: func([]byte) []byte { return []byte("never that layer") }})
	if _, err := s.Pull(t.Context(), Pull{Ref: f.host() + "/b:v1"}); !errors.Is(err, ErrInvalidImage) {
		t.Errorf("got %v", err)
	}
	remove(t, s, f.host()+"/a:v1")
	if s.work.Wait(); len(s.layers) != 0 {
		t.Errorf("%d layers outlive their image", len(s.layers))
	}
}

// TestKeptLayersGiveWay: what a failed pull has left never costs another its
// space; and a pull that failed for want of space leaves nothing.
func TestKeptLayersGiveWay(t *testing.T) {
	f, s := newFake(t), smallStore(t, "size=48m")
	failed(t, s, f, files("kept", noise(12<<20, "kept")))
	f.image("b", "v1", spec{layers: [][]byte{files("b", noise(14<<20, "b"))}})
	pull(t, s, f.host()+"/b:v1")
	if n := len(must(list(s.path(layersDir)))); n != 1 {
		t.Errorf("%d layers are there, want that of the new image alone", n)
	}
	f.image("c", "v1", spec{layers: [][]byte{files("c", "c"), files("c", noise(20<<20, "c"))}})
	if _, err := s.Pull(t.Context(), Pull{Ref: f.host() + "/c:v1"}); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("got %v", err)
	}
	if n := len(must(list(s.path(layersDir)))); n != 1 {
		t.Errorf("%d layers are there after a pull without space", n)
	}
}

// TestKeptLayersOfManyPulls: several pulls of one image fail and succeed at
// once; each layer is claimed as often as it should.
func TestKeptLayersOfManyPulls(t *testing.T) {
	f, s := newFake(t), newStore(t)
	s.keepTime = 5 * time.Millisecond
	layers := manyFiles(4, "f")
	f.image("a", "v1", spec{layers: layers})
	var mu sync.Mutex
	n := 0
	f.misbehave(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, digest.FromBytes(gzipped(layers[3])).String()) {
			return false
		}
		mu.Lock()
		defer mu.Unlock()
		if n++; n%3 != 0 {
			w.WriteHeader(404)
			return true
		}
		return false
	})
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range 10 {
				if _, err := s.Pull(t.Context(), Pull{Ref: f.host() + "/a:v1"}); err == nil {
					if err := s.Remove(t.Context(), f.host()+"/a:v1"); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	all.Wait()
	s.empty(t) // and newStore checks the rest
}
