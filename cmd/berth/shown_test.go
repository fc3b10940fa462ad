package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/cri/admin"
)

// hostile is a name that clears the screen, sets the title and forges a line, by
// all means that terminals know.
const hostile = "a\x1b[2J\x1b]0;title\x07\u009b2J\r\nberth: all is well\x7f\u202eevil\u2028\xff b"

const quoted = `a\x1b[2J\x1b]0;title\a\u009b2J\r\nberth: all is well\x7f\u202eevil\u2028\xff b`

// wantQuoted fails if a terminal would obey anything in text but the line breaks
// that berth itself has put there.
func wantQuoted(t *testing.T, what, text string, lines int) {
	t.Helper()
	if got := strings.Count(text, "\n"); got != lines {
		t.Errorf("%s: %d lines, want %d: %q", what, got, lines, text)
	}
	if rest := strings.ReplaceAll(text, "\n", ""); !isShown(rest) {
		t.Errorf("%s: a terminal would obey %q", what, rest)
	}
}

func TestShown(t *testing.T) {
	for text, want := range map[string]string{
		"":                          "",
		"docker.io/library/a:1":     "docker.io/library/a:1",
		"größe 100 % – 日本語 ✓":       "größe 100 % – 日本語 ✓",
		`C:\x1b "x"`:                `C:\x1b "x"`,
		hostile:                     quoted,
		"\x1b":                      `\x1b`,
		"\xf0\x28\x8c\x28":          `\xf0(\x8c(`,
		"zero\u200bwidth\u00adsoft": `zero\u200bwidth\u00adsoft`,
	} {
		if got := shown(text); got != want {
			t.Errorf("shown(%q) = %q, want %q", text, got, want)
		}
	}
}

// Whatever registries, images and pods are called, and whatever an error quotes, a
// terminal shows it and does not obey it.
func TestForeignTextIsQuoted(t *testing.T) {
	var out strings.Builder
	failure := status.Error(codes.Unknown, "pull: the registry says: "+hostile)
	for _, err := range []error{
		failure, fmt.Errorf("pull: %w", failure), status.Error(codes.Unavailable, hostile), status.Error(codes.Canceled, hostile),
	} {
		out.Reset()
		exitCode(&out, nil, err)
		wantQuoted(t, "an error of the daemon", out.String(), 1)
	}
	out.Reset()
	exitCode(&out, nil, errors.Join(errors.New(message(failure)), errors.New("another")))
	wantQuoted(t, "two errors", out.String(), 2)
	out.Reset()
	exitCode(&out, nil, outcome([]byte(`{"status":"Failure","message":"no\u001b[2J\nberth: all is well"}`)))
	wantQuoted(t, "the end of a session", out.String(), 1)

	out.Reset()
	images := []imageLine{{Image: &runtimeapi.Image{Id: "sha256:" + hostile, RepoTags: []string{hostile}, RepoDigests: []string{hostile}}}}
	if err := writeImages(&out, time.Now(), images, listOptions{whole: true}); err != nil {
		t.Error(err)
	}
	wantQuoted(t, "images", out.String(), 2)
	out.Reset()
	table := newTable(&out, true)
	table.row("NAME", hostile)
	if err := table.flush(); err != nil {
		t.Error(err)
	}
	wantQuoted(t, "a table", out.String(), 1)

	out.Reset()
	progress := newPullProgress(&out)
	progress.show(admin.PullProgress{Layers: []admin.LayerProgress{{Digest: hostile, Phase: admin.Done}}})
	wantQuoted(t, "progress", out.String(), 1)
	wantQuoted(t, "progress on a terminal", layerLine(admin.LayerProgress{Digest: hostile, Phase: admin.Downloading}, 80), 0)
}

// JSON is quoted for the terminal too, and says the same to programs.
func TestForeignTextInJSON(t *testing.T) {
	const foreign = "a\x1b[2J\u009b2J\r\nforged\x7f\u202e\u2028 𝒜\U000e0041 größe"
	var out strings.Builder
	if err := writeJSON(&out, map[string]any{"name": foreign, "info": json.RawMessage(`{"x":"` + "\u009b\x7f" + `"}`)}); err != nil {
		t.Fatal(err)
	}
	wantQuoted(t, "JSON", out.String(), strings.Count(out.String(), "\n"))
	var back struct {
		Name string
		Info struct{ X string }
	}
	if err := json.Unmarshal([]byte(out.String()), &back); err != nil {
		t.Fatal(err)
	}
	if back.Name != foreign || back.Info.X != "\u009b\x7f" {
		t.Errorf("it came back as %q", back)
	}
	if !strings.Contains(out.String(), "größe") {
		t.Errorf("letters are escaped: %s", out.String())
	}
}
