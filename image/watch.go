package image

import (
	"slices"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
)

// Watch shows how far one pull is. Whoever wants to know asks it when he wants
// to: a pull never waits for who looks at it, and counts no more than one number
// per read when nobody does. The zero value is ready.
type Watch struct {
	mu     sync.Mutex
	layers []watched // nil until the pull knows its layers
}

// LayerProgress is how far one layer of a pull is. A layer that another pull is
// fetching moves as that one does.
type LayerProgress struct {
	Digest digest.Digest // of the compressed bytes, as in the manifest
	Phase  Phase
	Bytes  int64 // compressed bytes that have come
	Total  int64 // compressed bytes of the layer
}

// Phase is what is happening to a layer.
type Phase int32

// The phases in their order. A layer whose fetching fails waits again, if
// another pull goes on with it.
const (
	Waiting     Phase = iota // for its turn
	Downloading              // being inflated and proven as it comes
	Extracting               // all of it is here: files and disk
	Done                     // this pull or one that it joined brought it
	Present                  // it was in the store before
)

// watched is one layer of a Watch.
type watched struct {
	promise promise
	had     bool // in the store before the pull
	moving  *transfer
}

// transfer is how far a layer is, written by the one that brings it.
type transfer struct {
	phase atomic.Int32
	bytes atomic.Int64 // since the phase Downloading began
}

func (t *transfer) begin(p Phase) {
	t.bytes.Store(0)
	t.phase.Store(int32(p))
}

// Layers tells how far each layer is, base layer first and without duplicates.
// Nil while the registry has not yet said which layers there are.
func (w *Watch) Layers() []LayerProgress {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []LayerProgress
	for _, l := range w.layers {
		p := LayerProgress{Digest: l.promise.Digest, Phase: Phase(l.moving.phase.Load()), Total: l.promise.Size}
		switch {
		case l.had:
			p.Phase, p.Bytes = Present, p.Total
		case p.Phase >= Extracting:
			p.Bytes = p.Total
		case p.Phase == Downloading:
			// The byte that proves a layer to be longer than declared counts.
			p.Bytes = min(l.moving.bytes.Load(), p.Total)
		}
		all = append(all, p)
	}
	return all
}

// show makes w show the layers of a pull that has joined their flights. Some are
// missing in the store. A nil w shows nothing.
func (s *Store) show(w *Watch, promises, missing []promise) {
	if w == nil {
		return
	}
	all := make([]watched, 0, len(promises))
	s.mu.Lock()
	for _, p := range promises {
		all = append(all, watched{promise: p, had: !slices.Contains(missing, p), moving: &s.flights[p].moving})
	}
	s.mu.Unlock()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.layers = all
}
