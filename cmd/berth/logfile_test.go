package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const stamp = "2026-11-24T12:00:00.000000001Z"

func logLine(stream, tag, content string) string {
	return fmt.Sprintf("%s %s %s %s\n", stamp, stream, tag, content)
}

func appendTo(t *testing.T, path, text string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// reading is a log with somebody who reads it.
type reading struct {
	logReader
	printer     logPrinter
	out, errOut bytes.Buffer
}

func newReading(t *testing.T) *reading {
	r := &reading{logReader: logReader{path: filepath.Join(t.TempDir(), "container.log")}}
	r.printer.stdout, r.printer.stderr = &r.out, &r.errOut
	t.Cleanup(r.close)
	return r
}

// more reads on and returns what came on stdout.
func (r *reading) more(t *testing.T) string {
	t.Helper()
	if _, err := r.read(r.printer.print); err != nil {
		t.Fatal(err)
	}
	defer r.out.Reset()
	return r.out.String()
}

func TestLogIsReadAsItGrows(t *testing.T) {
	r := newReading(t)
	if got := r.more(t); got != "" {
		t.Errorf("a log that does not exist has %q", got)
	}
	appendTo(t, r.path, logLine("stdout", "F", "one")+logLine("stderr", "F", "oops")+stamp+" stdout F tw")
	if got := r.more(t); got != "one\n" {
		t.Errorf("first %q", got)
	}
	appendTo(t, r.path, "o\n")
	if got := r.more(t); got != "two\n" {
		t.Errorf("then %q", got)
	}
	if got := r.errOut.String(); got != "oops\n" {
		t.Errorf("stderr %q", got)
	}
}

func TestPartsAreJoined(t *testing.T) {
	r := newReading(t)
	appendTo(t, r.path, logLine("stdout", "P", "no ")+logLine("stdout", "P", "newline ")+logLine("stdout", "F", "")+logLine("stdout", "P", "at the end"))
	if got := r.more(t); got != "no newline \nat the end" {
		t.Errorf("got %q", got)
	}
}

func TestContentIsKeptAsItIs(t *testing.T) {
	r := newReading(t)
	content := "  two  spaces \x00\xff "
	appendTo(t, r.path, logLine("stdout", "F", content)+logLine("stdout", "F", ""))
	if got := r.more(t); got != content+"\n\n" {
		t.Errorf("got %q", got)
	}
}

func TestTimestampsStandOncePerLine(t *testing.T) {
	r := newReading(t)
	r.printer.timestamps = true
	appendTo(t, r.path, logLine("stdout", "P", "a")+logLine("stderr", "F", "x")+logLine("stdout", "F", "b")+logLine("stdout", "F", "c"))
	if got, want := r.more(t), stamp+" ab\n"+stamp+" c\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestLogIsReadAcrossARotation(t *testing.T) {
	r := newReading(t)
	appendTo(t, r.path, logLine("stdout", "F", "one"))
	if got := r.more(t); got != "one\n" {
		t.Fatalf("first %q", got)
	}
	appendTo(t, r.path, logLine("stdout", "F", "two"))
	if err := os.Rename(r.path, r.path+".1"); err != nil {
		t.Fatal(err)
	}
	// Between the two there is no log at the path.
	if got := r.more(t); got != "two\n" {
		t.Errorf("before the new log %q", got)
	}
	appendTo(t, r.path+".1", logLine("stdout", "F", "three"))
	appendTo(t, r.path, logLine("stdout", "F", "four"))
	if got := r.more(t); got != "three\nfour\n" {
		t.Errorf("after it %q", got)
	}
}

func TestTail(t *testing.T) {
	log := logLine("stdout", "F", "one") + logLine("stdout", "P", "tw") + logLine("stdout", "F", "o") + logLine("stdout", "F", "three")
	for tail, want := range map[int]string{-1: "one\ntwo\nthree\n", 0: "", 1: "three\n", 2: "two\nthree\n", 3: "one\ntwo\nthree\n", 9: "one\ntwo\nthree\n"} {
		r := newReading(t)
		appendTo(t, r.path, log)
		if err := r.begin(tail); err != nil {
			t.Fatal(err)
		}
		if got := r.more(t); got != want {
			t.Errorf("the last %d lines are %q, want %q", tail, got, want)
		}
		appendTo(t, r.path, logLine("stdout", "F", "four"))
		if got := r.more(t); got != "four\n" {
			t.Errorf("after the last %d lines came %q", tail, got)
		}
	}
}

func TestForeignFileIsNoLog(t *testing.T) {
	r := newReading(t)
	appendTo(t, r.path, "root:x:0:0:root:/root:/bin/sh\n")
	if _, err := r.read(r.printer.print); err == nil || !strings.Contains(err.Error(), "is no log entry") {
		t.Errorf("got %v", err)
	}
}

func TestSince(t *testing.T) {
	now := noon
	for text, want := range map[string]time.Time{
		"": {}, "90s": noon.Add(-90 * time.Second), "2h": noon.Add(-2 * time.Hour),
		"2026-11-24T13:00:00+02:00": noon.Add(-time.Hour), "2026-11-24T11:59:59.5Z": noon.Add(-time.Second / 2),
	} {
		if got, err := parseSince(text, now); err != nil || !got.Equal(want) {
			t.Errorf("--since %q is %v, %v; want %v", text, got, err, want)
		}
	}
	if _, err := parseSince("yesterday", now); err == nil || !strings.Contains(err.Error(), "how long ago, like 10m") {
		t.Errorf("got %v", err)
	}

	r := newReading(t)
	for _, minute := range []string{"00", "01", "02"} {
		appendTo(t, r.path, "2026-11-24T12:"+minute+":00.5Z stdout F "+minute+"\n")
	}
	r.printer.since = noon.Add(time.Minute)
	if got := r.more(t); got != "01\n02\n" {
		t.Errorf("got %q", got)
	}
}
