package image

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
)

// windowed compresses with a window of 32 MiB, as one of a stream whose end is not known.
func windowed(data []byte) []byte {
	var buf bytes.Buffer
	w := must(zstd.NewWriter(&buf, zstd.WithWindowSize(32<<20)))
	must(w.Write(data))
	check(w.Flush())
	check(w.Close())
	return buf.Bytes()
}

// TestSlowRegistryHoldsNoMemory: a registry that does not deliver a layer whose window is
// large keeps nobody else from such a window.
func TestSlowRegistryHoldsNoMemory(t *testing.T) {
	slow, other, s := newFake(t), newFake(t), newStore(t)
	text := files("slow", noise(400_000, "slow"))
	slow.image("a", "v1", spec{layers: [][]byte{text}, compress: windowed})
	other.image("b", "v1", spec{layers: [][]byte{files("b", noise(100_000, "b"))}, compress: windowed})
	blob := windowed(text)
	begun := make(chan struct{}, 1)
	slow.misbehave(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, digest.FromBytes(blob).String()) {
			return false
		}
		_, _ = w.Write(blob[:len(blob)/2])
		_ = http.NewResponseController(w).Flush()
		begun <- struct{}{}
		<-r.Context().Done()
		return true
	})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		_, err := s.Pull(ctx, Pull{Ref: slow.host() + "/a:v1"})
		ended <- err
	}()
	<-begun
	soon, stop := context.WithTimeout(context.Background(), 5*time.Second)
	defer stop()
	if _, err := s.Pull(soon, Pull{Ref: other.host() + "/b:v1"}); err != nil {
		t.Errorf("the pull from elsewhere: %v", err)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the slow pull: %v", err)
	}
}

// TestSpooledLayerKeepsItsError: a registry that fails while a layer is brought to the
// disk is told as that, not as a wrong digest.
func TestSpooledLayerKeepsItsError(t *testing.T) {
	f, s := newFake(t), newStore(t)
	text := files("f", noise(400_000, "f"))
	f.image("a", "v1", spec{layers: [][]byte{text}, compress: windowed})
	blob := windowed(text)
	path := digest.FromBytes(blob).String()
	f.misbehave(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, path) {
			return false
		}
		if f.count(path) == 1 {
			_, _ = w.Write(blob[:200_000]) // the connection breaks
			return true
		}
		w.WriteHeader(http.StatusForbidden)
		return true
	})
	if _, err := s.Pull(context.Background(), Pull{Ref: f.host() + "/a:v1"}); err == nil || errors.Is(err, ErrInvalidImage) {
		t.Errorf("got %v, want the registry's own error", err)
	}
	f.misbehave(nil)
	pull(t, s, f.host()+"/a:v1")
}
