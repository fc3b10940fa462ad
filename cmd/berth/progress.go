package main

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"golang.org/x/term"

	"berth/cri/admin"
)

// pullProgress shows how far a pull is: on a terminal a bar for each layer, drawn
// anew in place, else a line for each layer that is complete.
type pullProgress struct {
	w             io.Writer
	bars          bool
	width, height int // of the terminal in runes

	drawn int             // lines that the next drawing goes over
	told  map[string]bool // digests of the layers that have had their line
}

func newPullProgress(w io.Writer) *pullProgress {
	p := &pullProgress{w: w, told: map[string]bool{}}
	if isTerminal(w) {
		width, height, err := term.GetSize(int(w.(*os.File).Fd()))
		p.bars, p.width, p.height = err == nil, width, height
	}
	return p
}

func (p *pullProgress) show(now admin.PullProgress) {
	if p.bars {
		p.draw(now.Layers)
		return
	}
	for _, l := range now.Layers {
		if p.told[l.Digest] || l.Phase != admin.Done && l.Phase != admin.Present {
			continue
		}
		p.told[l.Digest] = true
		fmt.Fprintf(p.w, "%s: %s, %s\n", shortID(l.Digest), phaseWords[l.Phase], sizeOf(l.Total))
	}
}

// phaseWords is what people are told of a layer.
var phaseWords = map[admin.Phase]string{
	admin.Waiting:     "waiting",
	admin.Downloading: "downloading",
	admin.Extracting:  "extracting",
	admin.Done:        "pulled",
	admin.Present:     "already here",
}

// draw goes back over what it drew last. A line longer than the window would
// wrap and take two, so none is; and what has left the window at its top cannot
// be drawn over, so no more is drawn than fits.
func (p *pullProgress) draw(layers []admin.LayerProgress) {
	layers = p.fitting(layers)
	var text strings.Builder
	if p.drawn > 0 {
		fmt.Fprintf(&text, "\x1b[%dA", p.drawn)
	}
	for _, l := range layers {
		line := []rune(layerLine(l))
		line = line[:min(len(line), p.width-1)]
		text.WriteString("\r" + string(line) + "\x1b[K\n")
	}
	text.WriteString("\x1b[J") // lines of layers that are complete
	p.drawn = len(layers)
	io.WriteString(p.w, text.String())
}

// fitting are the layers that are drawn: all, or the first that are under way.
func (p *pullProgress) fitting(layers []admin.LayerProgress) []admin.LayerProgress {
	most := max(p.height-2, 1) // the line above and the cursor's stay in sight
	if len(layers) <= most {
		return layers
	}
	layers = slices.DeleteFunc(slices.Clone(layers), func(l admin.LayerProgress) bool {
		return l.Phase != admin.Downloading && l.Phase != admin.Extracting
	})
	return layers[:min(len(layers), most)]
}

const barWidth = 24

func layerLine(l admin.LayerProgress) string {
	line := fmt.Sprintf("%s  %-12s", shortID(l.Digest), phaseWords[l.Phase])
	switch l.Phase {
	case admin.Downloading, admin.Extracting:
		done := barWidth
		if l.Total > 0 {
			done = int(l.Bytes * barWidth / l.Total)
		}
		return fmt.Sprintf("%s  [%s%s]  %s of %s", line, strings.Repeat("=", done), strings.Repeat(" ", barWidth-done), sizeOf(l.Bytes), sizeOf(l.Total))
	default:
		return fmt.Sprintf("%s  %s", line, sizeOf(l.Total))
	}
}

func sizeOf(n int64) string { return size(uint64(max(n, 0))) }
