package main

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"time"
)

// A table is what a run finds out, a row for each thing that is measured, in the
// order in which they came up first.
type table struct {
	sides [2]string
	rows  []*row
}

// A row is one thing, measured on both sides as often as the run does it.
type row struct {
	name, unit string
	target     target
	samples    [2][]float64
}

// row is the row of that name.
func (t *table) row(name, unit string, goal target) *row {
	for _, r := range t.rows {
		if r.name == name {
			return r
		}
	}
	r := &row{name: name, unit: unit, target: goal}
	t.rows = append(t.rows, r)
	return r
}

func (r *row) add(side int, value float64) { r.samples[side] = append(r.samples[side], value) }

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// A target is what Berth is to reach.
type target struct {
	kind  targetKind
	bound float64
}

type targetKind int

const (
	noTarget targetKind = iota
	ratioAtMost
	ratioAtLeast
	valueAtMost // of Berth alone
)

// none is for what is shown beside what counts.
var none = target{}

func (t target) String() string {
	switch t.kind {
	case ratioAtMost:
		return fmt.Sprintf("≤ %g×", t.bound)
	case ratioAtLeast:
		return fmt.Sprintf("≥ %g×", t.bound)
	case valueAtMost:
		return fmt.Sprintf("≤ %g", t.bound)
	}
	return ""
}

// met says how a row fares, "" without a target or without anything to compare.
func (t target) met(value, ratio float64) string {
	var ok bool
	switch t.kind {
	case noTarget:
		return ""
	case ratioAtMost:
		ok = ratio <= t.bound
	case ratioAtLeast:
		ok = ratio >= t.bound
	case valueAtMost:
		ok, ratio = value <= t.bound, value
	}
	switch {
	case math.IsNaN(ratio):
		return ""
	case ok:
		return "met"
	}
	return "**missed**"
}

type summary struct{ p50, p95, p99, spread float64 }

// summarize returns percentiles by nearest rank, and as spread half of the distance
// between the quartiles, as a fraction of the median. What there are too few samples
// for is NaN.
func summarize(samples []float64) summary {
	nan := math.NaN()
	if len(samples) == 0 {
		return summary{nan, nan, nan, nan}
	}
	sorted := slices.Sorted(slices.Values(samples))
	at := func(p float64) float64 {
		return sorted[max(0, int(math.Ceil(p*float64(len(sorted))))-1)]
	}
	s := summary{p50: at(0.5), p95: at(0.95), p99: at(0.99), spread: nan}
	if len(samples) > 1 && s.p50 != 0 {
		s.spread = (at(0.75) - at(0.25)) / 2 / math.Abs(s.p50)
	}
	return s
}

// writeMarkdown writes what has samples. Ratios are of medians, of the first side to
// the second.
func (t *table) writeMarkdown(w io.Writer) error {
	var text strings.Builder
	fmt.Fprintf(&text, "| What | n | %[1]s p50 | p95 | p99 | ± | %[2]s p50 | p95 | p99 | ± | Ratio | Target | |\n", t.sides[0], t.sides[1])
	text.WriteString("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|\n")
	for _, r := range t.rows {
		a, b := summarize(r.samples[0]), summarize(r.samples[1])
		ratio := a.p50 / b.p50
		if math.IsInf(ratio, 0) {
			ratio = math.NaN()
		}
		shown := number(ratio)
		if shown != "" {
			shown += "×"
		}
		fmt.Fprintf(&text, "| %s (%s) | %d | %s | %s | %s | %s | %s |\n", r.name, r.unit, len(r.samples[0]),
			a, b, shown, r.target, r.target.met(a.p50, ratio))
	}
	_, err := io.WriteString(w, text.String())
	return err
}

func (s summary) String() string {
	spread := ""
	if !math.IsNaN(s.spread) {
		spread = fmt.Sprintf("%.0f %%", 100*s.spread)
	}
	return strings.Join([]string{number(s.p50), number(s.p95), number(s.p99), spread}, " | ")
}

// number has three digits that count, "" if it is none.
func number(f float64) string {
	switch a := math.Abs(f); {
	case math.IsNaN(f):
		return ""
	case a >= 100:
		return fmt.Sprintf("%.0f", f)
	case a >= 10:
		return fmt.Sprintf("%.1f", f)
	case a >= 1:
		return fmt.Sprintf("%.2f", f)
	}
	return fmt.Sprintf("%.3f", f)
}
