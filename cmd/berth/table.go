package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/term"
)

// table aligns rows of text in columns. On a terminal it is cut to the window:
// the widest columns lose the middle of their texts.
type table struct {
	w     io.Writer
	width int // runes that fit into a line; 0: any number
	rows  [][]string
}

const (
	columnGap   = 3
	leastColumn = 16 // no column is cut to less
)

// newTable writes to w, uncut if whole is set.
func newTable(w io.Writer, whole bool) *table {
	t := &table{w: w}
	if !whole && isTerminal(w) {
		if width, _, err := term.GetSize(int(w.(*os.File).Fd())); err == nil {
			t.width = width
		}
	}
	return t
}

// row adds a line. Others may have written its cells.
func (t *table) row(cells ...string) {
	row := make([]string, len(cells))
	for i, cell := range cells {
		row[i] = shown(cell)
	}
	t.rows = append(t.rows, row)
}

func (t *table) flush() error {
	widths := t.widths()
	var text strings.Builder
	for _, row := range t.rows {
		for i, cell := range row {
			cell = cut(cell, widths[i])
			text.WriteString(cell)
			if i < len(row)-1 {
				text.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)+columnGap))
			}
		}
		text.WriteByte('\n')
	}
	_, err := io.WriteString(t.w, text.String())
	return err
}

// widths are those of the columns, cut to the table's width.
func (t *table) widths() []int {
	var widths []int
	for _, row := range t.rows {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	total := columnGap * (len(widths) - 1)
	for _, width := range widths {
		total += width
	}
	for ; t.width > 0 && total > t.width; total-- {
		widest := 0
		for i, width := range widths {
			if width > widths[widest] {
				widest = i
			}
		}
		if widths[widest] <= leastColumn {
			break
		}
		widths[widest]--
	}
	return widths
}

// cut leaves out the middle of a text longer than width: names tell themselves
// apart at their ends.
func cut(text string, width int) string {
	runes := []rune(text)
	if len(runes) <= width {
		return text
	}
	head := (width - 1) / 2
	return string(runes[:head]) + "…" + string(runes[len(runes)-(width-1-head):])
}

// shortID is as much of an id as people read: 12 hex digits.
func shortID(id string) string {
	_, hex, isDigest := strings.Cut(id, ":")
	if !isDigest {
		hex = id
	}
	return hex[:min(len(hex), 12)]
}

// showID is the id, or as much of it as people read.
func showID(id string, whole bool) string {
	if whole {
		return id
	}
	return shortID(id)
}

// size writes a number of bytes with three digits at most.
func size(bytes uint64) string {
	const units = "KMGTPE"
	if bytes < 1024 {
		return fmt.Sprintf("%d B", bytes)
	}
	value, unit := float64(bytes)/1024, 0
	for value >= 999.5 && unit < len(units)-1 {
		value /= 1024
		unit++
	}
	if value < 99.95 {
		return fmt.Sprintf("%.1f %ciB", value, units[unit])
	}
	return fmt.Sprintf("%.0f %ciB", value, units[unit])
}

// age writes the time from at to now in its largest whole unit. A zero at has
// no age.
func age(now time.Time, at int64) string {
	if at == 0 {
		return "-"
	}
	d := max(now.Sub(time.Unix(0, at)), 0)
	switch {
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", d/time.Minute)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", d/time.Hour)
	default:
		return fmt.Sprintf("%dd", d/(24*time.Hour))
	}
}

// orDash makes an empty cell visible.
func orDash(cell string) string {
	if cell == "" {
		return "-"
	}
	return cell
}
