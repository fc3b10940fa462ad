package image

import (
	"slices"
	"strings"
)

// Names returns how a container of the image is shown. asked is what its creator
// called the image: a reference, the image's id, or nothing.
//
// name is asked itself if it is a reference. Otherwise it is a tag of the image, or
// else its repo digest. digested is the repo digest by which the image came under
// name; if it never did, any of its repo digests. Either is the id of an image that
// has no such reference.
func (i *Image) Names(asked string) (name, digested string) {
	name = asked
	if asked == "" || i.isID(asked) {
		name = slices.Concat(i.Tags, i.Digests, []string{i.ID.String()})[0]
	}
	return name, i.digested(name)
}

// isID reports whether text found the image as its id or the beginning of it; see
// Store.Image for the order of what is looked for.
func (i *Image) isID(text string) bool {
	hex := strings.TrimPrefix(text, "sha256:")
	if hex == i.ID.Encoded() {
		return true
	}
	if named, err := parseRef(text); err == nil && slices.Contains(i.Tags, named.String()) {
		return false
	}
	return len(hex) >= minPrefix && isHex(hex) && strings.HasPrefix(i.ID.Encoded(), hex)
}

func (i *Image) digested(name string) string {
	if len(i.Digests) == 0 {
		return i.ID.String()
	}
	named, err := parseRef(name)
	if err != nil {
		return i.Digests[0]
	}
	if slices.Contains(i.Digests, named.String()) {
		return named.String()
	}
	of := named.Name() + "@"
	if target, ok := i.targets[named.String()]; ok && slices.Contains(i.Digests, of+target.String()) {
		return of + target.String()
	}
	for _, d := range i.Digests {
		if strings.HasPrefix(d, of) {
			return d
		}
	}
	return i.Digests[0]
}
