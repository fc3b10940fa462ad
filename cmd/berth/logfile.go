package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"
)

// logReader reads a container's log in the format of CRI, one entry a line:
//
//	2016-10-06T00:17:09.669794202Z stdout F the output
//
// F ends a line of the output, P is a part of one. The log may be rotated.
type logReader struct {
	path string

	file *os.File
	rest []byte // an entry whose end has not been written yet
}

// logEntry is one line of the log. Its slices live until the next one.
type logEntry struct {
	time, stream, content []byte
	partial               bool
}

// read passes on every entry that was written since the last read and returns
// how many there were. A log that does not exist yet is empty.
func (r *logReader) read(emit func(logEntry) error) (int, error) {
	total := 0
	for {
		if r.file == nil {
			file, err := os.Open(r.path)
			if errors.Is(err, fs.ErrNotExist) {
				return total, nil
			}
			if err != nil {
				return total, fmt.Errorf("open log: %w", err)
			}
			r.file = file
		}
		// Asked before the read: after a rotation nothing more is written to
		// the old file, so that this read gets its end.
		rotated := r.rotated()
		n, err := r.drain(emit)
		total += n
		if err != nil || !rotated {
			return total, err
		}
		r.close()
	}
}

// rotated reports whether path is another file by now.
func (r *logReader) rotated() bool {
	open, err1 := r.file.Stat()
	now, err2 := os.Stat(r.path)
	return err1 == nil && err2 == nil && !os.SameFile(open, now)
}

// drain reads to the end of the open file.
func (r *logReader) drain(emit func(logEntry) error) (int, error) {
	n := 0
	chunk := make([]byte, 64<<10)
	for {
		size, err := r.file.Read(chunk)
		r.rest = append(r.rest, chunk[:size]...)
		for {
			line, rest, whole := bytes.Cut(r.rest, []byte{'\n'})
			if !whole {
				break
			}
			r.rest = rest
			e, err := parseEntry(line)
			if err != nil {
				return n, fmt.Errorf("%s: %w", r.path, err)
			}
			if err := emit(e); err != nil {
				return n, err
			}
			n++
		}
		if err == io.EOF {
			return n, nil
		}
		if err != nil {
			return n, fmt.Errorf("read log: %w", err)
		}
	}
}

// begin moves to the last tail lines of output; a negative tail is all.
func (r *logReader) begin(tail int) error {
	if tail < 0 {
		return nil
	}
	// Offsets of where the lines of output begin, of the last tail+1.
	var begins []int64
	var offset int64
	inLine := false
	counting := &logReader{path: r.path}
	defer counting.close()
	_, err := counting.read(func(e logEntry) error {
		if !inLine {
			begins = append(begins[max(0, len(begins)-tail):], offset)
		}
		inLine = e.partial
		offset += int64(e.size())
		return nil
	})
	if err != nil || counting.file == nil {
		return err
	}
	start := offset
	if len(begins) > 0 && tail > 0 {
		start = begins[max(0, len(begins)-tail)]
	}
	if r.file, err = os.Open(r.path); err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	_, err = r.file.Seek(start, io.SeekStart)
	return err
}

func (r *logReader) close() {
	if r.file != nil {
		r.file.Close()
	}
	r.file, r.rest = nil, nil
}

func parseEntry(line []byte) (logEntry, error) {
	parts := bytes.SplitN(line, []byte{' '}, 4)
	if len(parts) < 4 || len(parts[2]) == 0 {
		return logEntry{}, fmt.Errorf("%.80q is no log entry", line)
	}
	return logEntry{time: parts[0], stream: parts[1], content: parts[3], partial: parts[2][0] == 'P'}, nil
}

// size is the entry's length in the log in bytes.
func (e logEntry) size() int {
	return len(e.time) + len(e.stream) + len(e.content) + len("  F \n")
}

// logPrinter writes entries as the output that they were.
type logPrinter struct {
	stdout, stderr io.Writer
	timestamps     bool
	since          time.Time // what is older is not written

	begun  bool            // an entry was new enough: so are the others
	inLine map[string]bool // by stream: the last entry was a part
}

func (p *logPrinter) print(e logEntry) error {
	if !p.begun && !p.since.IsZero() {
		at, err := time.Parse(time.RFC3339Nano, string(e.time))
		if err != nil {
			return fmt.Errorf("read the time of a log entry: %w", err)
		}
		if at.Before(p.since) {
			return nil
		}
	}
	p.begun = true
	stream := string(e.stream)
	w := p.stdout
	if stream == "stderr" {
		w = p.stderr
	}
	var text []byte
	if p.timestamps && !p.inLine[stream] {
		text = append(append(text, e.time...), ' ')
	}
	text = append(text, e.content...)
	if !e.partial {
		text = append(text, '\n')
	}
	if p.inLine == nil {
		p.inLine = map[string]bool{}
	}
	p.inLine[stream] = e.partial
	_, err := w.Write(text)
	return err
}
