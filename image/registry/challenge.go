package registry

import (
	"slices"
	"strings"
)

// challenge is one way to authenticate that a 401 offers (RFC 9110, 11.6.1).
type challenge struct {
	scheme string            // lower case
	params map[string]string // names in lower case
}

// maxChallenges bounds how many challenges of one answer are tried.
const maxChallenges = 4

// usable are the challenges that can be answered here, in the order in which
// they are tried. Bearer comes first: its tokens are short-lived, and it knows
// anonymous users.
func usable(headers []string) []challenge {
	var all []challenge
	for _, h := range headers {
		all = append(all, parseChallenges(h)...)
	}
	all = slices.DeleteFunc(all, func(c challenge) bool { return c.scheme != "bearer" && c.scheme != "basic" })
	slices.SortStableFunc(all, func(a, b challenge) int { return -strings.Compare(a.scheme, b.scheme) })
	return all[:min(len(all), maxChallenges)]
}

// parseChallenges reads a WWW-Authenticate header, which may hold several
// challenges. A word before "=" is a parameter of the challenge before it, any
// other word begins a challenge. What cannot be understood is skipped to the
// next comma: the other challenges still count.
func parseChallenges(header string) []challenge {
	var all []challenge
	for rest := header; ; {
		rest = strings.TrimLeft(rest, ", \t")
		if rest == "" {
			return all
		}
		word, after := cutToken(rest)
		if word == "" {
			rest = skipToComma(rest)
			continue
		}
		word = strings.ToLower(word)
		value, isParam := strings.CutPrefix(strings.TrimLeft(after, " \t"), "=")
		if !isParam {
			all = append(all, challenge{scheme: word, params: map[string]string{}})
			rest = after
			continue
		}
		value, rest = cutValue(strings.TrimLeft(value, " \t"))
		if len(all) == 0 {
			continue
		}
		if params := all[len(all)-1].params; params[word] == "" {
			params[word] = value
		}
	}
}

// cutToken takes a token off the beginning of s (RFC 9110, 5.6.2).
func cutToken(s string) (token, rest string) {
	i := strings.IndexFunc(s, func(r rune) bool {
		alnum := 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9'
		return !alnum && !strings.ContainsRune("!#$%&'*+-.^_`|~", r)
	})
	if i < 0 {
		return s, ""
	}
	return s[:i], s[i:]
}

// cutValue takes the value of a parameter off the beginning of s: a token or a
// quoted string. The rest begins behind the next comma.
func cutValue(s string) (value, rest string) {
	if !strings.HasPrefix(s, `"`) {
		value, rest = cutToken(s)
		return value, skipToComma(rest)
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch {
		case s[i] == '"':
			return b.String(), skipToComma(s[i+1:])
		case s[i] == '\\' && i+1 < len(s):
			i++
		}
		b.WriteByte(s[i])
	}
	return "", "" // no closing quote: where it should end nobody knows
}

// skipToComma drops s up to its first comma outside quotes.
func skipToComma(s string) string {
	quoted := false
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\\' && quoted:
			i++
		case s[i] == '"':
			quoted = !quoted
		case s[i] == ',' && !quoted:
			return s[i:]
		}
	}
	return ""
}
