package runner

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

var noon = time.Date(2026, 2, 3, 12, 0, 0, 1, time.FixedZone("", 3600))

func TestLines(t *testing.T) {
	for _, test := range []struct{ name, chunk, want string }{
		{"nothing", "", ""},
		{"a line", "a\n", "F a\n"},
		{"an empty line", "\n", "F \n"},
		{"two lines", "a\nb\n", "F a\nF b\n"},
		{"a partial line", "a", "P a\n"},
		{"a line and a partial one", "a\nb", "F a\nP b\n"},
		{"carriage returns", "a\r\nb\r", "F a\r\nP b\r\n"},
		{"what looks like a line of the log", "P x\nF ", "F P x\nP F \n"},
		{"bytes of no encoding", "\xff\x00\n", "F \xff\x00\n"},
	} {
		for _, stream := range []string{stdoutName, stderrName} {
			var want strings.Builder
			for line := range strings.Lines(test.want) {
				want.WriteString("2026-02-03T11:00:00.000000001Z " + stream + " " + line)
			}
			if got := appendLines(nil, noon, stream, []byte(test.chunk)); string(got) != want.String() {
				t.Errorf("%s: %q, want %q", test.name, got, want.String())
			}
		}
	}
}

// A chunk's lines joined again are the chunk, wherever it was cut.
func FuzzLines(f *testing.F) {
	f.Add([]byte("a\nb"), 1)
	f.Add([]byte("\n\n\n"), 2)
	f.Add(bytes.Repeat([]byte("x"), 100), 0)
	f.Fuzz(func(t *testing.T, text []byte, cut int) {
		cut = max(0, min(cut, len(text)))
		var log []byte
		for _, chunk := range [][]byte{text[:cut], text[cut:]} {
			log = appendLines(log, noon, stdoutName, chunk)
		}
		var joined []byte
		for line := range bytes.Lines(log) {
			rest, ok := bytes.CutPrefix(line, []byte("2026-02-03T11:00:00.000000001Z stdout "))
			if !ok || len(rest) < 3 || rest[len(rest)-1] != '\n' {
				t.Fatalf("line %q", line)
			}
			switch tag, text := string(rest[:2]), rest[2:]; tag {
			case "F ":
				joined = append(joined, text...)
			case "P ":
				joined = append(joined, text[:len(text)-1]...)
			default:
				t.Fatalf("line %q", line)
			}
		}
		if !bytes.Equal(joined, text) {
			t.Errorf("%q joined, want %q", joined, text)
		}
	})
}
