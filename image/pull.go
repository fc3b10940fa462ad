package image

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/distribution/reference"
	"golang.org/x/sync/errgroup"

	"berth/image/registry"
)

// Pull makes an image visible under p.Ref, asking the registry each time what
// the reference means now. Layers that the store has under the same compressed
// digest, or that another pull is fetching from the same registry, are not
// fetched again. When it fails, its finished layers stay for a while, so that the
// next try goes on from there, and nothing else of it.
//
// Errors: ErrInvalidReference, ErrNotFound, ErrUnauthorized,
// ErrRegistryUnavailable, ErrInvalidImage, *SpaceError, ctx's.
func (s *Store) Pull(ctx context.Context, p Pull) (*Image, error) {
	named, err := parseRef(p.Ref)
	if err != nil {
		return nil, err
	}
	img, err := s.pull(ctx, named, p)
	if err != nil {
		// What an image or a registry says of itself stands in it.
		return nil, fmt.Errorf("pull %s: %w", named, registry.Printable(err))
	}
	return img, nil
}

func (s *Store) pull(ctx context.Context, named reference.Named, p Pull) (*Image, error) {
	repo, err := s.repository(named, p.Auth)
	if err != nil {
		return nil, err
	}
	defer repo.Close()
	r, err := s.resolve(ctx, repo, named)
	if err != nil {
		return nil, err
	}
	s.claimFor(r, newClaim(nil, r.order...))
	defer s.releaseFor(r)
	img, err := s.bring(ctx, repo, r, named, p.Watch)
	switch {
	case err == nil:
		s.forget(img.Layers)
	case !errors.Is(err, syscall.ENOSPC):
		s.keep(r.promises(repo.Host))
	}
	return img, err
}

// bring fetches all that is missing of an image, and makes it visible.
func (s *Store) bring(ctx context.Context, repo *registry.Repository, r *resolved, named reference.Named, watch *Watch) (*Image, error) {
	if err := s.fetchLayers(ctx, repo, r, watch); err != nil {
		return nil, err
	}
	if err := s.writeBlobs(r); err != nil {
		return nil, s.spaceError(err, 0)
	}
	img, err := s.publish(named, r)
	if err != nil {
		return nil, err
	}
	return img, syncDir(s.path(imagesDir))
}

// fetchLayers brings all layers into the store, the largest first: the last one
// to begin decides when the pull ends. After a failure no layer is begun. Those
// under way are finished for the next try, if that makes sense: if the registry
// is unavailable, not if the image is no good or nobody waits any more.
func (s *Store) fetchLayers(ctx context.Context, repo *registry.Repository, r *resolved, watch *Watch) error {
	promises := r.promises(repo.Host)
	defer s.join(promises)()
	var missing []promise
	for _, p := range promises {
		if !s.claimProven(r, p) {
			missing = append(missing, p)
		}
	}
	s.show(watch, promises, missing)
	slices.SortStableFunc(missing, func(a, b promise) int { return cmp.Compare(b.Size, a.Size) })
	fetching, stop := context.WithCancel(ctx)
	defer stop()
	group, waiting := errgroup.WithContext(fetching)
	for _, p := range missing {
		group.Go(func() error {
			err := s.fetchLayer(waiting, fetching, repo, r, p)
			if err != nil && !errors.Is(err, ErrRegistryUnavailable) && !errors.Is(err, context.Canceled) {
				stop()
			}
			return err
		})
	}
	return group.Wait()
}

// fetchLayer brings one layer and its tree into the store, or waits for another
// pull that was promised the same. waiting is in force until it begins, fetching
// to the end.
func (s *Store) fetchLayer(waiting, fetching context.Context, repo *registry.Repository, r *resolved, p promise) error {
	unlock, err := s.lockPromise(waiting, p)
	if err != nil {
		return err
	}
	defer unlock()
	if s.found(r, p) {
		return nil
	}
	release, err := s.slots.take(waiting, share{p.registry, r.target})
	if err != nil {
		return err
	}
	defer release()
	if s.found(r, p) { // another registry has kept the same promise meanwhile
		return nil
	}
	if err := s.ingest(fetching, repo, r, p); err != nil {
		return s.spaceError(err, p.Size)
	}
	return nil
}

// found claims the layer if another pull has brought it.
func (s *Store) found(r *resolved, p promise) bool {
	ok := s.claimProven(r, p)
	if ok {
		s.transfer(p).phase.Store(int32(Done))
	}
	return ok
}

// writeBlobs stores index, manifest and config. They are claimed already.
func (s *Store) writeBlobs(r *resolved) error {
	for d, data := range r.blobs {
		if err := s.writeFile(s.blobPath(d), data); err != nil {
			return err
		}
		s.mu.Lock()
		b := s.blobLocked(d)
		b.present, b.size = true, int64(len(data))
		s.mu.Unlock()
	}
	return nil
}

// publish makes the records visible. Before that, the names of all that they
// mean are made durable.
func (s *Store) publish(named reference.Named, r *resolved) (*Image, error) {
	for _, dir := range []string{layersDir, blobsDir} {
		if err := syncDir(s.path(dir)); err != nil {
			return nil, err
		}
	}
	refs, err := references(named, r.target)
	if err != nil {
		return nil, err
	}
	now := time.Now().UTC()
	var entries []*entry
	var files []string
	defer func() {
		for _, f := range files {
			os.Remove(f) // only after a failure is there one left
		}
	}()
	for _, ref := range refs {
		e := newEntry(r.record(ref, now), r.config)
		data, err := json.Marshal(e.record)
		if err != nil {
			return nil, err
		}
		file, err := s.prepare(data)
		if err != nil {
			return nil, s.spaceError(err, 0)
		}
		entries, files = append(entries, e), append(files, file)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.roomLocked(entries); err != nil {
		return nil, err
	}
	for i, e := range entries {
		if err := os.Rename(files[i], s.recordPath(e.Ref)); err != nil {
			return nil, errors.Join(err, s.withdrawLocked(entries[:i]))
		}
		s.installLocked(e)
	}
	return s.images[r.id], nil
}

// spaceError names the store and the need when err is a full disk.
func (s *Store) spaceError(err error, need int64) error {
	var known *SpaceError
	if !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EDQUOT) || errors.As(err, &known) {
		return err
	}
	bytes, files, ferr := s.free()
	return &SpaceError{Dir: s.Dir, Need: need, Free: bytes, Files: files, Err: errors.Join(err, ferr)}
}
