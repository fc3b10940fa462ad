package registry

import (
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"
)

// maxQuote bounds what an error repeats of foreign text, in bytes.
const maxQuote = 300

// Quote is how an error repeats a text that a registry sent: in quotes, so that
// escape sequences and line breaks reach neither a terminal nor a log; without
// the queries of URLs; and not the whole of a long one.
func Quote(text string) string { return strconv.Quote(bound(withoutQuery(text))) }

// bound leaves the beginning of a text that is too long.
func bound(text string) string {
	if len(text) <= maxQuote {
		return text
	}
	end := maxQuote
	for end > maxQuote-utf8.UTFMax && !utf8.RuneStart(text[end]) {
		end--
	}
	return text[:end] + "…"
}

// escape is Quote for a sentence in which foreign text stands.
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

var query = regexp.MustCompile(`([A-Za-z][A-Za-z0-9+.-]*://[^\s"'<>?]*)\?[^\s"'<>]*`)

// withoutQuery cuts the queries off the URLs in a text.
func withoutQuery(text string) string {
	if !strings.Contains(text, "?") {
		return text
	}
	return query.ReplaceAllString(text, "$1")
}
