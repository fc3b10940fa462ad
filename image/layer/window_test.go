package layer

import (
	"bytes"
	"context"
	"errors"
	"testing"
)

// frameOf is a zstd frame of the byte x that asks for a window of 1 << log bytes.
func frameOf(log byte) []byte {
	return []byte{0x28, 0xb5, 0x2f, 0xfd, 0, (log - 10) << 3, 1 | 1<<3, 0, 0, 'x'}
}

// TestWindows: memory is asked for once, for the largest frame of a layer, and a frame
// that wants too much is refused before anything is given to it.
func TestWindows(t *testing.T) {
	skipped := []byte{0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3}
	no := errors.New("no")
	for name, test := range map[string]struct {
		logs    []byte
		most    int64
		refuse  bool
		asked   int
		want    error
		content string
	}{
		"small":                {logs: []byte{20}, asked: 1 << 20, content: "x"},
		"largest of three":     {logs: []byte{20, 25, 23}, asked: 1 << 25, content: "xxx"},
		"above the default":    {logs: []byte{20, 26}, asked: 1 << 20, want: ErrWindow},
		"above what is set":    {logs: []byte{23}, most: 1 << 22, want: ErrWindow},
		"more than is allowed": {logs: []byte{26}, most: 1 << 27, asked: 1 << 26, content: "x"},
		"refused":              {logs: []byte{20}, refuse: true, asked: 1 << 20, want: no},
	} {
		t.Run(name, func(t *testing.T) {
			sent, asked := bytes.Clone(skipped), 0
			for _, log := range test.logs {
				sent = append(sent, frameOf(log)...)
			}
			use := func(n int) error {
				asked += n
				if test.refuse {
					return no
				}
				return nil
			}
			var out bytes.Buffer
			_, err := Inflate(context.Background(), &out, bytes.NewReader(sent), declare(sent, []byte(test.content)), Windows{Most: test.most, Use: use})
			if !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
			if test.want == nil && out.String() != test.content {
				t.Errorf("content is %q", out.String())
			}
			if asked != test.asked {
				t.Errorf("%d bytes were asked for, want %d", asked, test.asked)
			}
		})
	}
}
