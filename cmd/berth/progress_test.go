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
// window that is too low there are only those under way.
func TestPullProgressInBars(t *testing.T) {
	for _, height := range []int{24, 4} {
		testBars(t, height)
	}
}

func testBars(t *testing.T, height int) {
	var out bytes.Buffer
	p := &pullProgress{w: &out, bars: true, width: 60, height: height}
	for _, now := range pullOnItsWay() {
		p.show(now)
		out.WriteString("--\n")
	}
	for line := range strings.Lines(out.String()) {
		line = strings.NewReplacer("\x1b[3A", "", "\x1b[1A", "", "\x1b[2A", "", "\x1b[K", "", "\x1b[J", "", "\r", "", "\n", "").Replace(line)
		if len(line) >= p.width {
			t.Errorf("%q is too long for the window", line)
		}
	}
	golden(t, fmt.Sprintf("progress-bars-%d.txt", height), strings.NewReplacer("\x1b", "ESC", "\r", "CR").Replace(out.String()))
}
