package main

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"berth/cri/admin"
)

// pullOnItsWay is a pull of three layers on its way.
func pullOnItsWay() []admin.PullProgress {
	layer := func(c string, phase admin.Phase, done, total int64) admin.LayerProgress {
		return admin.LayerProgress{Digest: "sha256:" + hexID(c), Phase: phase, Bytes: done, Total: total}
	}
	return []admin.PullProgress{
		{},
		{Layers: []admin.LayerProgress{layer("1a", admin.Present, 700, 700), layer("2b", admin.Downloading, 0, 64<<20), layer("3c", admin.Waiting, 0, 5<<20)}},
		{Layers: []admin.LayerProgress{layer("1a", admin.Present, 700, 700), layer("2b", admin.Downloading, 16<<20, 64<<20), layer("3c", admin.Downloading, 5<<20, 5<<20)}},
		{Layers: []admin.LayerProgress{layer("1a", admin.Present, 700, 700), layer("2b", admin.Extracting, 64<<20, 64<<20), layer("3c", admin.Done, 5<<20, 5<<20)}},
		{Layers: []admin.LayerProgress{layer("1a", admin.Present, 700, 700), layer("2b", admin.Done, 64<<20, 64<<20), layer("3c", admin.Done, 5<<20, 5<<20)}, Image: "sha256:" + hexID("5e")},
	}
}

// Without a terminal there is a line for each layer, when it is complete.
func TestPullProgressInLines(t *testing.T) {
	var out bytes.Buffer
	p := newPullProgress(&out)
	for _, now := range pullOnItsWay() {
		p.show(now)
	}
	golden(t, "progress.txt", out.String())
}

// On a terminal each drawing goes over the last one, no line wraps, and in a
// window that is too low there are only those under way. In a narrow one the
// numbers stay.
func TestPullProgressInBars(t *testing.T) {
	for _, window := range []struct{ width, height int }{{80, 24}, {60, 24}, {40, 24}, {60, 4}} {
		var out bytes.Buffer
		p := &pullProgress{w: &out, window: func() (int, int) { return window.width, window.height }}
		for _, now := range pullOnItsWay() {
			p.show(now)
			out.WriteString("--\n")
		}
		for line := range strings.Lines(out.String()) {
			line = strings.NewReplacer("\x1b[3A", "", "\x1b[1A", "", "\x1b[2A", "", "\x1b[K", "", "\x1b[J", "", "\r", "", "\n", "").Replace(line)
			if len(line) >= window.width {
				t.Errorf("%q is too long for the window", line)
			}
		}
		golden(t, fmt.Sprintf("progress-bars-%dx%d.txt", window.width, window.height), strings.NewReplacer("\x1b", "ESC", "\r", "CR").Replace(out.String()))
	}
}

// A window that becomes narrower wraps what was drawn: the next drawing goes over
// all of that.
func TestPullProgressInAWindowThatChanges(t *testing.T) {
	var out bytes.Buffer
	width := 80
	p := &pullProgress{w: &out, window: func() (int, int) { return width, 24 }}
	steps := pullOnItsWay()
	p.show(steps[1]) // three lines of 36, 75 and 38 or so
	out.Reset()
	width = 30
	p.show(steps[2])
	rows := 0
	for _, drawn := range []string{layerLine(steps[1].Layers[0], 79), layerLine(steps[1].Layers[1], 79), layerLine(steps[1].Layers[2], 79)} {
		rows += (len(drawn) + width - 1) / width
	}
	if want := fmt.Sprintf("\x1b[%dA", rows); rows < 6 || !strings.HasPrefix(out.String(), want) {
		t.Errorf("it goes over %q, want %d rows", out.String(), rows)
	}
}
