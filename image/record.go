package image

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// record is images/<hash(ref)>.json: one reference of one image.
type record struct {
	Ref    string          `json:"ref"`    // name:tag or name@digest
	Target digest.Digest   `json:"target"` // what the registry had under Ref
	Blobs  []digest.Digest `json:"blobs"`  // Target, what it led to, the config
	Config digest.Digest   `json:"config"` // the image's id
	Pulled time.Time       `json:"pulled"`
}

// entry is a record in memory, with its claim.
type entry struct {
	record
	config ocispec.Image
	claim  claim
}

func newEntry(r record, config ocispec.Image) *entry {
	return &entry{record: r, config: config, claim: newClaim(config.RootFS.DiffIDs, r.Blobs...)}
}

// readRecord reads a record and checks that what it names is there. Layers and
// blobs were read before.
func (s *Store) readRecord(path string) (*entry, error) {
	var r record
	if err := readJSON(path, &r); err != nil {
		return nil, err
	}
	if s.recordPath(r.Ref) != path {
		return nil, fmt.Errorf("record of %q has another reference's name", r.Ref)
	}
	if _, err := parseRef(r.Ref); err != nil {
		return nil, err
	}
	if !slices.Contains(r.Blobs, r.Config) || !slices.Contains(r.Blobs, r.Target) {
		return nil, fmt.Errorf("record of %q does not name its blobs", r.Ref)
	}
	for _, d := range r.Blobs {
		if s.blobs[d] == nil {
			return nil, fmt.Errorf("image %q: blob %s is missing", r.Ref, d)
		}
	}
	data, err := os.ReadFile(s.blobPath(r.Config))
	if err != nil {
		return nil, err
	}
	config, err := parseConfig(data)
	if err != nil {
		return nil, err
	}
	for _, d := range config.RootFS.DiffIDs {
		if s.layers[d] == nil {
			return nil, fmt.Errorf("image %q: layer %s is missing", r.Ref, d)
		}
	}
	return newEntry(r, config), nil
}

const (
	// maxListed bounds the list of all images, in bytes: a client of CRI takes
	// messages of 16 MiB.
	maxListed = 15 << 20
	// listedShare is what a list has of a reference beside its text, and of an image
	// beside its references and user, at most.
	listedShare = 256
)

// roomLocked tells whether the list of all images may have these references of one
// image too.
func (s *Store) roomLocked(more []*entry) error {
	used, adds := 0, 0
	for ref := range s.records {
		used += listedShare + len(ref)
	}
	for _, img := range s.images {
		used += listedShare + len(img.Config.Config.User)
	}
	for i, e := range more {
		if s.records[e.Ref] == nil {
			adds += listedShare + len(e.Ref)
		}
		if i == 0 && s.images[e.Config] == nil {
			adds += listedShare + len(e.config.Config.User)
		}
	}
	if adds > 0 && used+adds > maxListed {
		return fmt.Errorf("%w: the list of all images has %d KiB and this one adds %d KiB, more than the %d KiB that a client of CRI can receive: remove images",
			ErrListFull, used>>10, adds>>10, maxListed>>10)
	}
	return nil
}

// installLocked makes a record visible, in the place of one of the same
// reference. Its content must be there.
func (s *Store) installLocked(e *entry) {
	s.holdLocked(e.claim)
	old := s.records[e.Ref]
	s.records[e.Ref] = e
	s.refreshLocked(e.Config)
	if old != nil {
		s.refreshLocked(old.Config)
		s.releaseLocked(old.claim)
	}
}

// uninstallLocked takes a record out of sight.
func (s *Store) uninstallLocked(e *entry) {
	delete(s.records, e.Ref)
	s.refreshLocked(e.Config)
	s.releaseLocked(e.claim)
}

// refreshLocked makes the image that callers see anew, of its records.
func (s *Store) refreshLocked(id digest.Digest) {
	img := &Image{ID: id, targets: map[string]digest.Digest{}}
	for _, e := range s.records {
		if e.Config != id {
			continue
		}
		if strings.Contains(e.Ref, "@") {
			img.Digests = append(img.Digests, e.Ref)
		} else {
			img.Tags = append(img.Tags, e.Ref)
			img.targets[e.Ref] = e.Target
		}
		if e.Pulled.After(img.Created) {
			img.Created = e.Pulled
		}
		img.Config, img.Layers = e.config, e.config.RootFS.DiffIDs
	}
	if len(img.Tags)+len(img.Digests) == 0 {
		delete(s.images, id)
		return
	}
	slices.Sort(img.Tags)
	slices.Sort(img.Digests)
	img.Size = s.blobLocked(id).size
	for _, d := range unique(img.Layers) {
		img.Size += s.layerLocked(d).size
	}
	s.images[id] = img
}

// references are the records that a pull of named makes: the digest first, so
// that a moved tag does not take the image away from under its digest.
func references(named reference.Named, target digest.Digest) ([]string, error) {
	digested, err := withDigest(named, target)
	if err != nil {
		return nil, err
	}
	if _, ok := named.(reference.Tagged); ok {
		return []string{digested.String(), named.String()}, nil
	}
	return []string{digested.String()}, nil
}
