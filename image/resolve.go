package image

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth/image/registry"
)

// maxNesting is how deep an index may lie in an index.
const maxNesting = 4

// resolved is what a registry has under a reference, before any layer.
type resolved struct {
	target digest.Digest            // manifest or index under the reference itself
	last   *manifest                // the manifest for this platform
	config ocispec.Image            // parsed
	id     digest.Digest            // of the config
	blobs  map[digest.Digest][]byte // index, manifest and config as they came
	order  []digest.Digest          // of blobs, as they came
}

func (r *resolved) add(d digest.Digest, data []byte) {
	r.blobs[d] = data
	r.order = append(r.order, d)
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
	host, expected := s.platform(), ""
	for depth := 0; r.last == nil; depth++ {
		if depth == maxNesting {
			return nil, fmt.Errorf("%w: indexes nested deeper than %d", ErrInvalidImage, maxNesting)
		}
		got, err := repo.Manifest(ctx, ref, manifestTypes)
		if err != nil {
			return nil, err
		}
		m, err := parseManifest(got.MediaType, got.Bytes)
		if err != nil {
			return nil, err
		}
		if expected != "" && m.MediaType != expected {
			return nil, fmt.Errorf("%w: the index calls %s %s, it is %s", ErrInvalidImage, got.Digest, expected, m.MediaType)
		}
		if depth == 0 {
			r.target = got.Digest
		}
		r.add(got.Digest, got.Bytes)
		if !m.isIndex() {
			r.last = m
			break
		}
		next, err := choose(m.Manifests, host)
		if err != nil {
			return nil, err
		}
		ref, expected = next.Digest.String(), next.MediaType
	}
	return r, r.fetchConfig(ctx, repo, host)
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

// claim is all that the image needs.
func (r *resolved) claim() claim { return newClaim(r.config.RootFS.DiffIDs, r.order...) }

// record is what makes the image visible under ref.
func (r *resolved) record(ref string, now time.Time) record {
	return record{Ref: ref, Target: r.target, Blobs: r.order, Config: r.id, Pulled: now}
}
