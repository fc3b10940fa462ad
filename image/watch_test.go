package image

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// until looks at the pull until it is as far as reached says.
func (w *Watch) until(t *testing.T, reached func([]LayerProgress) bool) {
	look := time.NewTicker(time.Millisecond)
	defer look.Stop()
	for !reached(w.Layers()) {
		select {
		case <-look.C:
		case <-t.Context().Done():
			return
		}
	}
}

// halfOf serves the first half of a blob, and the rest of it when go on is
// closed.
func (f *fake) halfOf(blob []byte, goOn <-chan struct{}) {
	path := digest.FromBytes(blob).String()
	f.misbehave(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, path) {
			return false
		}
		w.Write(blob[:len(blob)/2])
		http.NewResponseController(w).Flush()
		select {
		case <-goOn:
			w.Write(blob[len(blob)/2:])
		case <-r.Context().Done():
		}
		return true
	})
}

// TestWatch: a pull and one that joins it show the same layer half fetched, and
// in the end whole; what is there already is told apart from what was brought.
func TestWatch(t *testing.T) {
	f, s := newFake(t), newStore(t)
	big, small := files("big", noise(400_000, "a")), files("b", "b")
	f.image("a", "v1", spec{layers: [][]byte{small, big, small}})
	f.image("b", "v1", spec{layers: [][]byte{small}})
	if _, err := s.Pull(context.Background(), Pull{Ref: f.host() + "/b:v1"}); err != nil {
		t.Fatal(err)
	}
	compressed := gzipped(big)
	total := int64(len(compressed))
	goOn := make(chan struct{})
	f.halfOf(compressed, goOn)

	var watches [2]Watch
	done := make(chan error, len(watches))
	half := LayerProgress{Digest: digest.FromBytes(compressed), Phase: Downloading, Bytes: total / 2, Total: total}
	for i := range watches {
		if got := watches[i].Layers(); got != nil {
			t.Errorf("before the pull: %v", got)
		}
		go func() {
			_, err := s.Pull(context.Background(), Pull{Ref: f.host() + "/a:v1", Watch: &watches[i]})
			done <- err
		}()
		watches[i].until(t, func(l []LayerProgress) bool { return len(l) == 2 && l[1] == half })
	}
	close(goOn)
	for range watches {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	there := int64(len(gzipped(small)))
	want := []LayerProgress{
		{Digest: digest.FromBytes(gzipped(small)), Phase: Present, Bytes: there, Total: there},
		{Digest: digest.FromBytes(compressed), Phase: Done, Bytes: total, Total: total},
	}
	for i := range watches {
		if got := watches[i].Layers(); !slices.Equal(got, want) {
			t.Errorf("pull %d ends at %v, want %v", i, got, want)
		}
	}
}

// TestWatchBeginsAnew: the pull that fetched a layer is given up; the layer
// waits, with nothing of it here, until the one that joined begins it anew.
func TestWatchBeginsAnew(t *testing.T) {
	f, s := newFake(t), newStore(t)
	big := files("big", noise(400_000, "a"))
	f.image("a", "v1", spec{layers: [][]byte{big}})
	goOn := make(chan struct{})
	f.halfOf(gzipped(big), goOn)

	var first, second Watch
	ctx, cancel := context.WithCancel(context.Background())
	firstDone, secondDone := make(chan error, 1), make(chan error, 1)
	go func() {
		_, err := s.Pull(ctx, Pull{Ref: f.host() + "/a:v1", Watch: &first})
		firstDone <- err
	}()
	half := func(l []LayerProgress) bool { return len(l) == 1 && l[0].Bytes == l[0].Total/2 }
	first.until(t, half)
	go func() {
		_, err := s.Pull(context.Background(), Pull{Ref: f.host() + "/a:v1", Watch: &second})
		secondDone <- err
	}()
	second.until(t, half)
	cancel()
	if err := <-firstDone; err == nil {
		t.Error("a cancelled pull succeeded")
	}
	second.until(t, half) // from the beginning: not the two halves of two pulls
	close(goOn)
	if err := <-secondDone; err != nil {
		t.Fatal(err)
	}
	if l := second.Layers(); l[0].Phase != Done || l[0].Bytes != l[0].Total {
		t.Errorf("the second pull ends at %v", l)
	}
}
