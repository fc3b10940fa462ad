package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth/image/layer"
	"berth/image/registry"
)

// maxNesting is how deep an index may lie in an index.
const maxNesting = 4

// maxFetched is how many manifests and indexes may be looked at for one image.
const maxFetched = 32

// resolved is what a registry has under a reference, before any layer.
type resolved struct {
	target digest.Digest            // manifest or index under the reference itself
	last   *manifest                // the manifest for this platform
	config ocispec.Image            // parsed
	id     digest.Digest            // of the config
	blobs  map[digest.Digest][]byte // index, manifest and config as they came
	order  []digest.Digest          // of blobs, as they came
	held   []claim                  // what the pull has a right to so far (Store.mu)
}

func (r *resolved) add(d digest.Digest, data []byte) {
	r.blobs[d] = data
	r.order = append(r.order, d)
}

// forget drops the blobs that were added after the first n.
func (r *resolved) forget(n int) {
	for _, d := range r.order[n:] {
		delete(r.blobs, d)
	}
	r.order = r.order[:n]
}

// repository is the client for named with a pull's credential.
func (s *Store) repository(named reference.Named, a Auth) (*registry.Repository, error) {
	s.mu.Lock()
	how := s.Registries
	s.mu.Unlock()
	r := &registry.Repository{
		Host:       reference.Domain(named),
		Name:       reference.Path(named),
		PlainHTTP:  how.PlainHTTP,
		Credential: registry.Credential(a),
		Timeout:    how.Timeout,
		MinRate:    how.MinRate,
	}
	return r, r.Open()
}

// resolve fetches what leads to the layers: the index, the manifest for this
// platform, the config.
func (s *Store) resolve(ctx context.Context, repo *registry.Repository, named reference.Named) (*resolved, error) {
	ref := ""
	switch n := named.(type) {
	case reference.Digested:
		ref = n.Digest().String()
	case reference.Tagged:
		ref = n.Tag()
	}
	r := &resolved{blobs: map[digest.Digest][]byte{}}
	d := descent{repo: repo, host: s.platform(), found: r}
	return r, d.follow(ctx, ref, "", 0)
}

// descent follows one reference to the config of an image for host.
type descent struct {
	repo    *registry.Repository
	host    ocispec.Platform
	found   *resolved
	fetched int // manifests and indexes
}

// follow fetches what is under ref, a manifest or an index of type expected ("" for
// any), and goes on to the config of the first image below it that fits.
func (d *descent) follow(ctx context.Context, ref, expected string, depth int) error {
	m, err := d.fetch(ctx, ref, expected, depth)
	if err != nil {
		return err
	}
	if !m.isIndex() {
		d.found.last = m
		return d.found.fetchConfig(ctx, d.repo, d.host)
	}
	entries, err := choose(m.Manifests, d.host)
	if err != nil {
		return err
	}
	var first error
	for _, entry := range entries {
		mark := len(d.found.order)
		err := d.follow(ctx, entry.Digest.String(), entry.MediaType, depth+1)
		if !errors.Is(err, ErrInvalidImage) || d.fetched > maxFetched {
			return err
		}
		if first == nil {
			first = err
		}
		d.found.forget(mark)
	}
	return first
}

// fetch fetches and reads one manifest or index.
func (d *descent) fetch(ctx context.Context, ref, expected string, depth int) (*manifest, error) {
	if depth == maxNesting {
		return nil, fmt.Errorf("%w: indexes nested deeper than %d", ErrInvalidImage, maxNesting)
	}
	if d.fetched++; d.fetched > maxFetched {
		return nil, fmt.Errorf("%w: it has more than %d manifests and indexes that do not say what platform they are for", ErrInvalidImage, maxFetched)
	}
	got, err := d.repo.Manifest(ctx, ref, manifestTypes)
	if err != nil {
		return nil, err
	}
	mediaType := got.MediaType
	if slices.Contains(genericTypes, mediaType) {
		mediaType = expected
	}
	m, err := parseManifest(mediaType, got.Bytes)
	if err != nil {
		return nil, err
	}
	if expected != "" && m.MediaType != expected {
		return nil, fmt.Errorf("%w: the index calls %s %s, it is %s", ErrInvalidImage, got.Digest, expected, m.MediaType)
	}
	if depth == 0 {
		d.found.target = got.Digest
	}
	d.found.add(got.Digest, got.Bytes)
	return m, nil
}

func (r *resolved) fetchConfig(ctx context.Context, repo *registry.Repository, host ocispec.Platform) error {
	want := r.last.Config
	blob := repo.Blob(ctx, want.Digest, want.Size)
	defer blob.Close()
	data, err := io.ReadAll(blob)
	if err != nil {
		return fmt.Errorf("image config: %w", err)
	}
	if got := digest.FromBytes(data); got != want.Digest {
		return fmt.Errorf("%w: image config %s came as %s", ErrInvalidImage, want.Digest, got)
	}
	if r.config, err = parseConfig(data); err != nil {
		return err
	}
	if err := matchLayers(r.last, r.config); err != nil {
		return err
	}
	if err := checkPlatform(r.config, host); err != nil {
		return err
	}
	r.id = want.Digest
	r.add(want.Digest, data)
	return nil
}

// promises are the layers as the registry has them, base layer first and
// without duplicates.
func (r *resolved) promises(registry string) []promise {
	var all []promise
	seen := map[promise]bool{}
	for i, l := range r.last.Layers {
		p := promise{registry, layer.Declared{Digest: l.Digest, Size: l.Size, DiffID: r.config.RootFS.DiffIDs[i]}}
		if !seen[p] {
			seen[p] = true
			all = append(all, p)
		}
	}
	return all
}

// record is what makes the image visible under ref.
func (r *resolved) record(ref string, now time.Time) record {
	return record{Ref: ref, Target: r.target, Blobs: r.order, Config: r.id, Pulled: now}
}
