package image

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"

	"github.com/opencontainers/go-digest"
)

// holder takes slots in a bubble and knows which it has.
type holder struct {
	ctx   context.Context
	slots slots
	held  map[share][]func()
}

// ask takes n slots, as far as there are any, and returns how many it got.
func (h *holder) ask(of share, n int) int {
	before := len(h.held[of])
	for range n {
		go func() {
			if release, err := h.slots.take(h.ctx, of); err == nil {
				h.held[of] = append(h.held[of], release)
			}
		}()
		synctest.Wait() // one after the other
	}
	return len(h.held[of]) - before
}

func (h *holder) release(of share) {
	release := h.held[of][0]
	h.held[of] = h.held[of][1:]
	release()
	synctest.Wait()
}

func inSlots(t *testing.T, f func(t *testing.T, h *holder)) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel() // whoever waits still
		f(t, &holder{ctx: ctx, held: map[share][]func(){}})
	})
}

func img(registry string, n int) share { return share{registry, digest.Digest(fmt.Sprint(n))} }

// TestSlotsAreShared: what one image, the images of one registry and all
// together may hold; and each image has one in any case.
func TestSlotsAreShared(t *testing.T) {
	inSlots(t, func(t *testing.T, h *holder) {
		for i, want := range []int{perImage, perImage, 1, 1} {
			if got := h.ask(img("a", i), 10); got != want {
				t.Errorf("image %d of registry a got %d slots, want %d", i, got, want)
			}
		}
		// a has 10 of 16.
		for i, want := range []int{perImage, 2, 1} {
			if got := h.ask(img("b", i), 10); got != want {
				t.Errorf("image %d of registry b got %d slots, want %d", i, got, want)
			}
		}
		if got := h.ask(img("c", 0), 10); got != 1 {
			t.Errorf("a new registry got %d slots", got)
		}
	})
}

// TestSlotsGoToWhoHasLeast: a slot that becomes free goes to the registry that
// holds the fewest, and there to the image that does.
func TestSlotsGoToWhoHasLeast(t *testing.T) {
	inSlots(t, func(t *testing.T, h *holder) {
		for i := range 4 {
			h.ask(img("a", i), 10)
		}
		for i := range 2 {
			h.ask(img("b", i), 10)
		}
		h.ask(img("c", 0), 10) // one, beyond the 16
		h.release(img("b", 0))
		if got := len(h.held[img("c", 0)]); got != 1 {
			t.Errorf("c has %d slots although 16 others are held", got)
		}
		h.release(img("b", 0))
		if got := len(h.held[img("c", 0)]); got != 2 {
			t.Errorf("c, which had least, has %d slots", got)
		}
	})
}

// TestSlotsCancelled: who leaves takes nothing along.
func TestSlotsCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s slots
		of := img("a", 0)
		for range 2000 {
			ctx, cancel := context.WithCancel(t.Context())
			for range perImage + 2 {
				go func() {
					if release, err := s.take(ctx, of); err == nil {
						release()
					}
				}()
			}
			if rand.IntN(2) == 0 {
				synctest.Wait()
			}
			cancel()
			synctest.Wait()
			if s.all != 0 || len(s.waiting) != 0 || len(s.images) != 0 || len(s.registries) != 0 {
				t.Fatalf("left over: %d held, %d waiting, %v, %v", s.all, len(s.waiting), s.images, s.registries)
			}
		}
	})
}
