package conformance

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"

	"berth/test/expect"
	"berth/test/registry"
)

// tenLayers are small layers that nobody else has.
func tenLayers(t *testing.T, seed string) (layers [][]byte) {
	for i := range 10 {
		layers = append(layers, registry.Layer(t, registry.File("f", 0o644, fmt.Sprint(seed, i))))
	}
	return layers
}

// isLayer tells a request for a layer from one for a config, of which each image
// here has one: the first blob that is asked for.
func isLayer(r *http.Request, config *sync.Map) bool {
	name, _, ok := strings.Cut(r.URL.Path, "/blobs/")
	if !ok || r.Method != http.MethodGet {
		return false
	}
	first, _ := config.LoadOrStore(name, r.URL.Path)
	return first != r.URL.Path
}

// A registry that never delivers its layers, one of which it shares with an image
// elsewhere, keeps no other pull from going on.
func TestSlowRegistryBlocksNobody(t *testing.T) {
	onOneNode(t, func(t *testing.T, n *node) {
		var config sync.Map
		begun := make(chan struct{}, 100)
		layers := tenLayers(t, "popular")
		slow := registry.Start(t)
		slow.PushLayers(t, "slow", layers, ocispec.ImageConfig{}, "1")
		slow.Misbehave(func(w http.ResponseWriter, r *http.Request) bool {
			if !isLayer(r, &config) {
				return false
			}
			w.WriteHeader(http.StatusOK)
			http.NewResponseController(w).Flush()
			begun <- struct{}{}
			<-r.Context().Done()
			return true
		})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- n.tryPull(ctx, slow.Host()+"/slow:1") }()
		for range 4 {
			<-begun
		}
		n.registry.PushLayers(t, "popular", layers, ocispec.ImageConfig{}, "1")
		soon, stop := context.WithTimeout(t.Context(), time.Minute)
		defer stop()
		if err := n.tryPull(soon, n.registry.Host()+"/popular:1"); err != nil {
			t.Errorf("the same layers from elsewhere: %v", err)
		}
		cancel()
		expect.Code(t, "the slow pull", <-ended, codes.Canceled)
	})
}

// Ten layers, one of which cannot be had for a while: no other is fetched twice.
func TestFailedPullGoesOn(t *testing.T) {
	onOneNode(t, func(t *testing.T, n *node) {
		n.registry.PushLayers(t, "ten", tenLayers(t, "ten"), ocispec.ImageConfig{}, "1")
		ref := n.registry.Host() + "/ten:1"
		var config sync.Map
		var mu sync.Mutex
		fetched, broken := map[string]int{}, ""
		n.registry.Misbehave(func(w http.ResponseWriter, r *http.Request) bool {
			if !isLayer(r, &config) {
				return false
			}
			mu.Lock()
			defer mu.Unlock()
			if fetched[r.URL.Path] == 0 && len(fetched) == 9 && broken == "" {
				broken = r.URL.Path
			}
			if r.URL.Path == broken {
				w.WriteHeader(http.StatusServiceUnavailable)
				return true
			}
			fetched[r.URL.Path]++
			return false
		})
		expect.Code(t, "a pull without one layer", n.tryPull(t.Context(), ref), codes.Unknown)
		mu.Lock()
		broken = "none"
		mu.Unlock()
		n.pull(t, ref)
		for path, times := range fetched {
			if times != 1 {
				t.Errorf("%s was fetched %d times", path, times)
			}
		}
		if len(fetched) != 10 {
			t.Errorf("%d layers were fetched", len(fetched))
		}
	})
}
