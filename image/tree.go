package image

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	"k8s.io/klog/v2"

	"berth/image/rootfs"
)

// treeInfo is trees/…/tree.json.
type treeInfo = rootfs.Tree

// extract makes a tree directory, with its tree.json, of the tar in f.
func (s *Store) extract(ctx context.Context, dir string, tar io.ReaderAt, size int64) (treeInfo, error) {
	root := filepath.Join(dir, "root")
	if err := os.MkdirAll(root, 0o700); err != nil {
		return treeInfo{}, err
	}
	if err := s.room(size); err != nil {
		return treeInfo{}, err
	}
	info, err := rootfs.Extract(ctx, root, io.NewSectionReader(tar, 0, size), size, func() error { return s.room(guardStep) })
	if errors.Is(err, rootfs.ErrInvalidTar) {
		return info, fmt.Errorf("%w: %w", ErrInvalidImage, err)
	}
	if err != nil {
		return info, err
	}
	data, err := json.Marshal(info)
	if err != nil {
		return info, err
	}
	return info, os.WriteFile(filepath.Join(dir, "tree.json"), data, 0o600)
}

// ensureTree makes the tree of a layer that the caller has a claim on, unless
// it is there. After a reboot this is where a layer is read for the first time:
// it is proven again.
func (s *Store) ensureTree(ctx context.Context, d digest.Digest) (err error) {
	unlock, err := s.lockLayer(ctx, d)
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := os.Lstat(s.treePath(d)); err == nil {
		return nil
	}
	f, err := os.Open(filepath.Join(s.layerPath(d), "layer.tar"))
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%w: layer %s is damaged or missing, pull the image again", ErrNotFound, d)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	sum := sha256.New()
	size, err := io.Copy(sum, f)
	if err != nil {
		return fmt.Errorf("read layer %s: %w", d, err)
	}
	if got := digest.NewDigest(digest.SHA256, sum); got != d {
		return errors.Join(fmt.Errorf("%w: layer %s is damaged (it is %s now), pull the image again", ErrNotFound, d, got), s.quarantine(d))
	}
	temp, err := s.temp()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.discard(temp)) }()
	tree := filepath.Join(temp, "tree")
	info, err := s.extract(ctx, tree, f, size)
	if err != nil {
		return s.spaceError(fmt.Errorf("extract layer %s: %w", d, err), size)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := os.Rename(tree, s.treePath(d)); err != nil {
		return err
	}
	s.layerLocked(d).tree = info
	return nil
}

// quarantine takes a damaged layer away, so that the next pull of an image
// that has it fetches it again.
func (s *Store) quarantine(d digest.Digest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	klog.InfoS("Layer is damaged and removed", "diffID", d)
	l := s.layerLocked(d)
	l.present, l.size, l.tree, l.blobs = false, 0, treeInfo{}, nil
	return s.discard(s.layerPath(d))
}
