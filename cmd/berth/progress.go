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
	w      io.Writer
	window func() (width, height int) // of the terminal, now; nil: no terminal

	drawn []int           // runes of each line that the next drawing goes over
	told  map[string]bool // digests of the layers that have had their line
}

func newPullProgress(w io.Writer) *pullProgress {
	p := &pullProgress{w: w, told: map[string]bool{}}
	if isTerminal(w) {
		p.window = func() (width, height int) {
			width, height, err := term.GetSize(int(w.(*os.File).Fd()))
			if err != nil || width == 0 || height == 0 { // nobody has said how large it is
				return 80, 24
			}
			return width, height
		}
	}
	return p
}

func (p *pullProgress) show(now admin.PullProgress) {
	if p.window != nil {
		p.draw(now.Layers)
		return
	}
	for _, l := range now.Layers {
		if p.told[l.Digest] || l.Phase != admin.Done && l.Phase != admin.Present {
			continue
		}
		p.told[l.Digest] = true
		_ = say(p.w, "%s: %s, %s", shortID(l.Digest), phaseWords[l.Phase], sizeOf(l.Total))
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
// wrap and take two, so none is; but those of a window that has become narrower
// since were wrapped by it. What has left the window at its top cannot be drawn
// over, so no more is drawn than fits.
func (p *pullProgress) draw(layers []admin.LayerProgress) {
	width, height := p.window()
	rows := 0
	for _, runes := range p.drawn {
		rows += 1 + max(runes-1, 0)/width
	}
	var text strings.Builder
	if rows > 0 {
		fmt.Fprintf(&text, "\x1b[%dA", rows)
	}
	p.drawn = p.drawn[:0]
	for _, l := range fitting(layers, height) {
		line := []rune(layerLine(l, width-1))
		line = line[:min(len(line), width-1)]
		text.WriteString("\r" + string(line) + "\x1b[K\n")
		p.drawn = append(p.drawn, len(line))
	}
	text.WriteString("\x1b[J") // lines of layers that are complete
	io.WriteString(p.w, text.String())
}

// fitting are the layers that are drawn: all, or the first that are under way.
func fitting(layers []admin.LayerProgress, height int) []admin.LayerProgress {
	most := max(height-2, 1) // the line above and the cursor's stay in sight
	if len(layers) <= most {
		return layers
	}
	layers = slices.DeleteFunc(slices.Clone(layers), func(l admin.LayerProgress) bool {
		return l.Phase != admin.Downloading && l.Phase != admin.Extracting
	})
	return layers[:min(len(layers), most)]
}

// barWidth is the most that a bar takes of a line; a shorter one than leastBar
// shows nothing. All that have one have the same: amountWidth is left for what
// stands behind it.
const (
	barWidth    = 24
	leastBar    = 8
	amountWidth = len("1000.0 MiB of 1.0 GiB")
)

// layerLine is a layer in at most width runes. Where that is little, the bar goes
// first, and then the word: how far it is stays.
func layerLine(l admin.LayerProgress, width int) string {
	id, phase := shown(shortID(l.Digest)), phaseWords[l.Phase]
	if l.Phase != admin.Downloading && l.Phase != admin.Extracting {
		return fmt.Sprintf("%s  %-12s  %s", id, phase, sizeOf(l.Total))
	}
	amount := fmt.Sprintf("%s of %s", sizeOf(l.Bytes), sizeOf(l.Total))
	head := fmt.Sprintf("%s  %-12s", id, phase)
	room := min(width-len(head)-len("  []  ")-amountWidth, barWidth)
	switch {
	case room >= leastBar:
		done := room
		if l.Total > 0 {
			done = int(l.Bytes * int64(room) / l.Total)
		}
		return fmt.Sprintf("%s  [%s%s]  %s", head, strings.Repeat("=", done), strings.Repeat(" ", room-done), amount)
	case len(head)+len("  ")+amountWidth <= width:
		return head + "  " + amount
	default:
		return id + "  " + amount
	}
}

func sizeOf(n int64) string { return size(uint64(max(n, 0))) }
