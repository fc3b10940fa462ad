package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// shown is a text that others may have written, as it can be printed: whatever a
// terminal would obey rather than show, or nobody would see, is written as in Go's
// string literals. That is all but letters, marks, digits, punctuation, symbols and
// the blank: escape sequences, line breaks, the directions of text.
func shown(text string) string {
	if isShown(text) {
		return text
	}
	var b strings.Builder
	for len(text) > 0 {
		_, size := utf8.DecodeRuneInString(text)
		if isShown(text[:size]) {
			b.WriteString(text[:size])
		} else {
			quoted := strconv.Quote(text[:size])
			b.WriteString(quoted[1 : len(quoted)-1])
		}
		text = text[size:]
	}
	return b.String()
}

func isShown(text string) bool {
	return utf8.ValidString(text) && !strings.ContainsFunc(text, isHidden)
}

func isHidden(r rune) bool { return !unicode.IsPrint(r) }

// say prints a line in which others may have written.
func say(w io.Writer, format string, args ...any) error {
	_, err := fmt.Fprintln(w, shown(fmt.Sprintf(format, args...)))
	return err
}

// shownJSON is JSON with what shown would escape in its strings escaped. Between
// strings, JSON has nothing of the kind but blanks and line breaks.
func shownJSON(text []byte) []byte {
	b := make([]byte, 0, len(text))
	for _, r := range string(text) {
		if r == '\n' || !isHidden(r) {
			b = utf8.AppendRune(b, r)
			continue
		}
		for _, unit := range utf16.Encode([]rune{r}) {
			b = fmt.Appendf(b, `\u%04x`, unit)
		}
	}
	return b
}
