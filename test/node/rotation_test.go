//go:build node

package node

import (
	"compress/gzip"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// testRotation reads a log that the kubelet has rotated while it was written:
// every line is in one of its files, once and in order.
func testRotation(t *testing.T, n *node) {
	p := n.await(t, time.Minute, "runs", "lines", func(p pod) bool { return p.container("main").State.Running != nil })
	dir := filepath.Join(n.podLogs(), fmt.Sprintf("default_lines-node_%s", p.Metadata.UID), "main")
	within(t, time.Minute, "its log is rotated twice", func() bool {
		rotated, _ := filepath.Glob(filepath.Join(dir, "0.log.*.gz"))
		return len(rotated) > 0
	})
	write(t, filepath.Join(n.shared("lines"), "enough"), "")
	n.ended(t, "lines", "main")

	files := logFiles(t, dir)
	if len(files) < 3 {
		t.Errorf("only %v", files)
	}
	next := 1
	for _, file := range files {
		for line := range strings.Lines(readMaybeZipped(t, file)) {
			parts := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 4)
			if len(parts) != 4 || parts[1] != "stdout" || parts[2] != "F" {
				t.Fatalf("%s: %q is no entry", filepath.Base(file), line)
			}
			if text := parts[3]; text != fmt.Sprintf("%d of many lines that are written until it is enough", next) {
				if text != fmt.Sprintf("%d lines", next-1) {
					t.Fatalf("%s: %q where line %d should be", filepath.Base(file), text, next)
				}
				return
			}
			next++
		}
	}
	t.Errorf("%d lines and no end", next-1)
}

// logFiles are the files of a log, oldest first: the names of rotated ones hold
// the time, and the one that is written is "0.log".
func logFiles(t *testing.T, dir string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "0.log.*"))
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(files)
	return append(files, filepath.Join(dir, "0.log"))
}

func readMaybeZipped(t *testing.T, path string) string {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	var reader io.Reader = file
	if strings.HasSuffix(path, ".gz") {
		if reader, err = gzip.NewReader(file); err != nil {
			t.Fatal(err)
		}
	}
	text, err := io.ReadAll(reader)
	if err != nil {
		t.Fatalf("read %s: %v", path, err)
	}
	return string(text)
}
