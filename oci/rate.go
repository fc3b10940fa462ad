package oci

import "time"

// A rate turns readings of a counter into how fast it has grown of late. It needs
// nobody who reads in the background: whoever asks brings a reading, and however
// many ask how often, the span that is looked at is no shorter than shortest and,
// when somebody asks at least every window, no longer than two windows.
type rate struct {
	older, newer reading // window apart or more; zero until there are so many
}

type reading struct {
	at    time.Time
	total time.Duration
}

const (
	window   = 10 * time.Second // the kubelet reads every 10 seconds
	shortest = time.Second      // below it, the tick of the scheduler shows
)

// add takes a reading and returns the growth in nanoseconds per second, nil while
// there is nothing to compare with.
func (r *rate) add(now reading) *uint64 {
	if now.total < r.newer.total { // another counter
		*r = rate{}
	}
	base := r.newer
	if now.at.Sub(base.at) < window && !r.older.at.IsZero() {
		base = r.older
	}
	if now.at.Sub(r.newer.at) >= window {
		r.older, r.newer = r.newer, now
	}
	span := now.at.Sub(base.at)
	if base.at.IsZero() || span < shortest {
		return nil
	}
	perSecond := uint64(float64(now.total-base.total) / span.Seconds())
	return &perSecond
}
