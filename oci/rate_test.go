package oci

import (
	"testing"
	"time"
)

func TestRate(t *testing.T) {
	const none = -1
	type ask struct {
		at, total float64 // seconds
		want      float64 // cores
	}
	for name, asks := range map[string][]ask{
		"the first has nothing to compare with":  {{0, 5, none}},
		"too soon after the first":               {{0, 5, none}, {0.5, 5.5, none}, {1, 5.5, 0.5}},
		"every ten seconds":                      {{0, 0, none}, {10, 10, 1}, {20, 10, 0}, {30, 15, 0.5}},
		"a second asker does not shorten it":     {{0, 0, none}, {10, 10, 1}, {10.1, 10.1, 1}, {12, 10.1, 10.1 / 12}, {20, 10.1, 0.01}},
		"every second":                           {{0, 0, none}, {1, 1, 1}, {2, 2, 1}, {9, 2, 2. / 9}, {10, 2, 0.2}, {11, 3, 3. / 11}, {19, 3, 3. / 19}, {20, 3, 0.1}},
		"after an hour, since the last":          {{0, 0, none}, {10, 10, 1}, {3610, 46, 0.01}},
		"a counter that begins again is another": {{0, 50, none}, {10, 3, none}, {20, 5, 0.2}},
	} {
		t.Run(name, func(t *testing.T) {
			start := time.Now()
			var r rate
			for _, a := range asks {
				got := r.add(reading{start.Add(seconds(a.at)), seconds(a.total)})
				if (got == nil) != (a.want == none) {
					t.Fatalf("at %v s: %v, want %v", a.at, got, a.want)
				}
				if got != nil && *got-uint64(a.want*1e9)+1 > 2 { // rounded either way
					t.Errorf("at %v s: %d, want %v", a.at, *got, uint64(a.want*1e9))
				}
			}
		})
	}
}

func seconds(n float64) time.Duration { return time.Duration(n * float64(time.Second)) }
