package main

import (
	"math"
	"strings"
	"testing"
)

func TestSummarize(t *testing.T) {
	var hundred []float64
	for i := range 100 {
		hundred = append(hundred, float64(100-i))
	}
	nan := math.NaN()
	for _, c := range []struct {
		name    string
		samples []float64
		want    summary
	}{
		{"none", nil, summary{nan, nan, nan, nan}},
		{"one", []float64{7}, summary{7, 7, 7, nan}},
		{"zeros", []float64{0, 0}, summary{0, 0, 0, nan}},
		{"one to a hundred", hundred, summary{50, 95, 99, 0.5}},
	} {
		got := summarize(c.samples)
		// NaN is not itself, but it looks like itself.
		if got.String() != c.want.String() {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

func TestTargets(t *testing.T) {
	nan := math.NaN()
	for _, c := range []struct {
		target       target
		value, ratio float64
		want         string
	}{
		{none, 1, 1, ""},
		{target{ratioAtMost, 0.5}, 9, 0.5, "met"},
		{target{ratioAtMost, 0.5}, 0, 0.51, "**missed**"},
		{target{ratioAtMost, 0.5}, 1, nan, ""},
		{target{ratioAtLeast, 2}, 0, 2, "met"},
		{target{ratioAtLeast, 2}, 9, 1.99, "**missed**"},
		{target{valueAtMost, 0.1}, 0.1, nan, "met"},
		{target{valueAtMost, 0.1}, 0.2, 0.01, "**missed**"},
		{target{valueAtMost, 0.1}, nan, nan, ""},
	} {
		if got := c.target.met(c.value, c.ratio); got != c.want {
			t.Errorf("%v of %g at %g×: %q, want %q", c.target, c.value, c.ratio, got, c.want)
		}
	}
}

func TestMarkdown(t *testing.T) {
	tab := table{sides: [2]string{"one", "other"}}
	up := tab.row("up", "ms", target{ratioAtMost, 0.5})
	for _, v := range []float64{10, 20, 30} {
		up.add(0, v)
		tab.row("up", "ms", none).add(1, 10*v)
	}
	tab.row("idle", "%", target{valueAtMost, 0.05}).add(0, 0)
	var out strings.Builder
	if err := tab.writeMarkdown(&out); err != nil {
		t.Fatal(err)
	}
	const want = `| What | n | one p50 | p95 | p99 | ± | other p50 | p95 | p99 | ± | Ratio | Target | |
|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|
| up (ms) | 3 | 20.0 | 30.0 | 30.0 | 50 % | 200 | 300 | 300 | 50 % | 0.100× | ≤ 0.5× | met |
| idle (%) | 1 | 0.000 | 0.000 | 0.000 |  |  |  |  |  |  | ≤ 0.05 | met |
`
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
}
