package image

import (
	"fmt"
	"slices"
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// maxRef bounds a reference, in bytes: it has 255 of a name, 128 of a tag and a
// digest. To parse what is far longer takes long.
const maxRef = 1 << 9

// parseRef normalises a reference as people write it: "busybox" is
// docker.io/library/busybox:latest. With both a tag and a digest the digest
// counts and the tag is dropped, since nothing says that they belong together.
func parseRef(text string) (reference.Named, error) {
	if len(text) > maxRef {
		return nil, fmt.Errorf("%w: it has %d bytes, at most %d are possible", ErrInvalidReference, len(text), maxRef)
	}
	named, err := reference.ParseNormalizedNamed(text)
	if err != nil {
		return nil, fmt.Errorf("%w %q: %w", ErrInvalidReference, text, err)
	}
	if digested, ok := named.(reference.Digested); ok {
		if err := sha256Digest(digested.Digest()); err != nil {
			return nil, fmt.Errorf("%w %q: %w", ErrInvalidReference, text, err)
		}
		return withDigest(named, digested.Digest())
	}
	return reference.TagNameOnly(named), nil
}

func withDigest(named reference.Named, d digest.Digest) (reference.Named, error) {
	return reference.WithDigest(reference.TrimNamed(named), d)
}

// Image finds an image by tag, by digest reference or by id; an id may be
// complete, without "sha256:", or a unique beginning of at least minPrefix hex
// digits. A name goes before the beginning of an id. Errors: ErrNotFound,
// ErrInvalidReference.
func (s *Store) Image(ref string) (*Image, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.imageLocked(ref)
}

func (s *Store) imageLocked(ref string) (*Image, error) {
	hex := strings.TrimPrefix(ref, "sha256:")
	if img := s.images[digest.NewDigestFromEncoded(digest.SHA256, hex)]; img != nil {
		return img, nil
	}
	named, err := parseRef(ref)
	if err == nil {
		if e := s.records[named.String()]; e != nil {
			return s.images[e.Config], nil
		}
	}
	if !isHex(hex) {
		if err != nil {
			return nil, err
		}
		return nil, fmt.Errorf("%w: %q", ErrNotFound, ref)
	}
	var found *Image
	for id, img := range s.images {
		if len(hex) < minPrefix || !strings.HasPrefix(id.Encoded(), hex) {
			continue
		}
		if found != nil {
			return nil, fmt.Errorf("%w: several ids begin with %q", ErrNotFound, ref)
		}
		found = img
	}
	if found == nil {
		return nil, fmt.Errorf("%w: %q", ErrNotFound, ref)
	}
	return found, nil
}

// minPrefix is how many hex digits of an id are needed.
const minPrefix = 4

func isHex(text string) bool {
	return text != "" && strings.Trim(text, "0123456789abcdef") == ""
}

// Images lists all images, sorted by their first tag, untagged ones last by id.
func (s *Store) Images() []*Image {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*Image, 0, len(s.images))
	for _, img := range s.images {
		all = append(all, img)
	}
	slices.SortFunc(all, func(a, b *Image) int { return strings.Compare(a.sortKey(), b.sortKey()) })
	return all
}

func (i *Image) sortKey() string {
	if len(i.Tags) > 0 {
		return "0" + i.Tags[0]
	}
	return "1" + i.ID.String()
}
