package registry

import (
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Bounds of what errors repeat of foreign text, in bytes.
const (
	maxQuote = 300
	maxText  = 1 << 10
)

// Quote is how an error repeats a text that a registry sent: in quotes, so that
// escape sequences and line breaks reach neither a terminal nor a log; without
// the queries of URLs; and not the whole of a long one.
func Quote(text string) string { return strconv.Quote(bound(withoutQuery(text), maxQuote)) }

// Printable is err with a text to which Quote's rules apply as a whole, except
// for the quotes.
func Printable(err error) error { return &printable{err, maxText} }

type printable struct {
	err error
	max int
}

func (e *printable) Error() string { return bound(escape(withoutQuery(e.err.Error())), e.max) }
func (e *printable) Unwrap() error { return e.err }

// bound leaves the beginning of a text that is longer than max.
func bound(text string, max int) string {
	if len(text) <= max {
		return text
	}
	end := max
	for end > max-utf8.UTFMax && !utf8.RuneStart(text[end]) {
		end--
	}
	return text[:end] + "…"
}

// escape writes what is not printable as a Go string has it.
func escape(text string) string {
	if !strings.ContainsFunc(text, func(r rune) bool { return r == utf8.RuneError || !strconv.IsPrint(r) }) {
		return text
	}
	var b strings.Builder
	for len(text) > 0 {
		r, n := utf8.DecodeRuneInString(text)
		if r != utf8.RuneError && strconv.IsPrint(r) {
			b.WriteRune(r)
		} else {
			quoted := strconv.Quote(text[:n])
			b.WriteString(quoted[1 : len(quoted)-1])
		}
		text = text[n:]
	}
	return b.String()
}

var (
	user  = regexp.MustCompile(`([A-Za-z][A-Za-z0-9+.-]*://)[^\s"'<>/?@]*@`)
	query = regexp.MustCompile(`([A-Za-z][A-Za-z0-9+.-]*://[^\s"'<>?]*)\?[^\s"'<>]*`)
)

// withoutQuery cuts the queries off the URLs in a text, and the users.
func withoutQuery(text string) string {
	if !strings.Contains(text, "://") {
		return text
	}
	return query.ReplaceAllString(user.ReplaceAllString(text, "$1"), "$1")
}
