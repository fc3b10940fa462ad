package main

import (
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

// The keys leave the session wherever they stand; each alone is passed on, also
// at the end of the input.
func TestDetachKeys(t *testing.T) {
	const p, q = "\x10", "\x11"
	for _, test := range []struct {
		typed, passed string
		leaves        bool
	}{
		{"", "", false},
		{"abc", "abc", false},
		{p + q, "", true},
		{"abc" + p + q + "lost", "abc", true},
		{p, p, false},
		{"a" + p, "a" + p, false},
		{q + p, q + p, false},
		{p + "a" + q, p + "a" + q, false},
		{p + p + q, p, true},
		{p + p + p, p + p + p, false},
		{"a" + p + "b" + p + q, "a" + p + "b", true},
	} {
		for how, reader := range map[string]io.Reader{
			"at once":           strings.NewReader(test.typed),
			"key by key":        iotest.OneByteReader(strings.NewReader(test.typed)),
			"ending with a key": iotest.DataErrReader(strings.NewReader(test.typed)),
		} {
			var passed strings.Builder
			left, before := false, test.passed
			_, err := io.Copy(&passed, &detachable{in: reader, detach: func() { left, before = true, passed.String() }})
			if err != nil || passed.String() != test.passed || left != test.leaves {
				t.Errorf("%q %s: %q, left %v, %v; want %q, %v", test.typed, how, passed.String(), left, err, test.passed, test.leaves)
			}
			if before != test.passed {
				t.Errorf("%q %s: left when %q was passed on", test.typed, how, before)
			}
		}
	}
}
