package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
)

// table aligns rows of text in columns.
type table struct{ w *tabwriter.Writer }

func newTable(w io.Writer) table {
	return table{tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)}
}

func (t table) row(cells ...string) {
	fmt.Fprintln(t.w, strings.Join(cells, "\t"))
}

func (t table) flush() { t.w.Flush() }

// shortID is as much of an id as people read: 12 hex digits.
func shortID(id string) string {
	_, hex, isDigest := strings.Cut(id, ":")
	if !isDigest {
		hex = id
	}
	return hex[:min(len(hex), 12)]
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
