package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"berth/image/layer"
	"berth/image/registry"
)

// ingest downloads one layer for the pull of r, proves it, claims it, extracts it
// and makes it visible. The caller has the lock that makes this the only one to
// fetch what was promised. On an error nothing of it stays.
func (s *Store) ingest(ctx context.Context, repo *registry.Repository, r *resolved, p promise) (err error) {
	if err := s.room(p.Size); err != nil {
		return err
	}
	temp, err := s.temp()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.discard(temp)) }()
	t := s.transfer(p)
	defer func() {
		if err != nil {
			t.begin(Waiting) // whoever waits for this layer is the next to try
		}
	}()
	made := filepath.Join(temp, "layer")
	if err := os.Mkdir(made, 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(made, "layer.tar"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	t.begin(Downloading)
	size, err := s.download(ctx, temp, f, repo, p.Declared, t)
	if err != nil {
		return err
	}
	t.phase.Store(int32(Extracting))
	s.claimFor(r, newClaim([]digest.Digest{p.DiffID}))
	if err := s.admit(ctx, temp, f, size, p.Declared); err != nil {
		return fmt.Errorf("layer %s: %w", p.Digest, err)
	}
	t.phase.Store(int32(Done))
	return nil
}

// admit puts the proven tar in f, which is in temp, among the layers. If the
// layer is there already, only the proof is new.
func (s *Store) admit(ctx context.Context, temp string, f *os.File, size int64, d layer.Declared) error {
	unlock, err := s.lockLayer(ctx, d.DiffID)
	if err != nil {
		return err
	}
	defer unlock()
	if s.has(d.DiffID) {
		return s.addProof(d)
	}
	made, tree := filepath.Join(temp, "layer"), filepath.Join(temp, "tree")
	blobs := []digest.Digest{d.Digest}
	var info treeInfo
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() (err error) {
		info, err = s.extract(ctx, tree, f, size)
		return err
	})
	group.Go(func() error {
		meta, err := json.Marshal(layerMeta{Size: size, Blobs: blobs})
		return errors.Join(err, fdatasync(f), writeSynced(filepath.Join(made, "meta.json"), meta), syncDir(made))
	})
	if err := group.Wait(); err != nil {
		return err
	}
	if err := s.reveal(d.DiffID, tree, made); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.layerLocked(d.DiffID)
	l.present, l.size, l.tree, l.blobs = true, size, info, blobs
	return nil
}

// reveal renames a finished layer and its tree to where they are looked for. A
// tree may be there already, in use, when the layer itself was damaged.
func (s *Store) reveal(d digest.Digest, tree, made string) error {
	if _, err := os.Lstat(s.treePath(d)); err != nil {
		if err := os.Rename(tree, s.treePath(d)); err != nil {
			return err
		}
	}
	if err := os.Rename(made, s.layerPath(d)); err != nil {
		return errors.Join(err, s.discard(s.treePath(d)))
	}
	return nil
}

// download writes the layer's tar to f. temp is a directory for what it needs besides.
func (s *Store) download(ctx context.Context, temp string, f *os.File, repo *registry.Repository, d layer.Declared, t *transfer) (int64, error) {
	blob := repo.Blob(ctx, d.Digest, d.Size)
	defer blob.Close()
	spool := &spool{from: &counted{blob, t}, store: s, dir: temp}
	defer spool.close()
	window := s.memory.share(ctx, math.MaxInt, spool.fill)
	defer window.release()
	size, err := layer.Inflate(ctx, &guarded{store: s, file: f}, spool, d, layer.Windows{Most: s.MaxWindow, Use: window.use})
	if errors.Is(err, layer.ErrMismatch) || errors.Is(err, layer.ErrTooLarge) || errors.Is(err, layer.ErrWindow) {
		err = fmt.Errorf("%w: %w", ErrInvalidImage, err)
	}
	return size, err
}

// counted counts what is read of a layer.
type counted struct {
	io.Reader
	transfer *transfer
}

func (r *counted) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	r.transfer.bytes.Add(int64(n))
	return n, err
}
