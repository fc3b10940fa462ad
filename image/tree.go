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

	"berth/image/layer"
	"berth/image/rootfs"
)

// treeInfo is what is remembered of a tree. What it implies is only in its tree.json,
// a rootfs.Tree: an image may have much of that.
type treeInfo struct {
	Bytes, Inodes int64
	Implies       bool
}

func infoOf(t rootfs.Tree) treeInfo { return treeInfo{t.Bytes, t.Inodes, len(t.Implied) > 0} }

func (s *Store) readTree(d digest.Digest) (t rootfs.Tree, err error) {
	err = readJSON(filepath.Join(s.treePath(d), "tree.json"), &t)
	return t, err
}

// extract makes a tree directory, with its tree.json, of the tar in f.
func (s *Store) extract(ctx context.Context, dir string, tar io.ReaderAt, size int64) (treeInfo, error) {
	root := filepath.Join(dir, "root")
	if err := os.MkdirAll(root, 0o700); err != nil {
		return treeInfo{}, err
	}
	if err := s.room(size); err != nil {
		return treeInfo{}, err
	}
	memory := s.memory.share(ctx, maxMetadata, nil)
	defer memory.release()
	made, err := rootfs.Extract(ctx, root, layer.Cancelled(ctx, io.NewSectionReader(tar, 0, size)), size, func() error { return s.room(guardStep) }, memory.use)
	if errors.Is(err, rootfs.ErrInvalidTar) {
		return treeInfo{}, fmt.Errorf("%w: %w", ErrInvalidImage, err)
	}
	if err != nil {
		return treeInfo{}, err
	}
	return infoOf(made), writeTree(filepath.Join(dir, "tree.json"), made)
}

func writeTree(path string, t rootfs.Tree) error {
	data, err := json.Marshal(t)
	if err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o600)
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
	size, err := io.Copy(sum, layer.Cancelled(ctx, f))
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
