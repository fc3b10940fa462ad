package image

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// Names of the store's directories, below Dir.
const (
	layersDir     = "layers/sha256"
	blobsDir      = "blobs/sha256"
	imagesDir     = "images"
	containersDir = "containers"
	treesDir      = "trees"
	ingestDir     = "ingest"
	trashDir      = "trash"
)

// layerMeta is layers/…/meta.json.
type layerMeta struct {
	Size  int64           `json:"size"`  // of layer.tar
	Blobs []digest.Digest `json:"blobs"` // that were fetched and inflated to it
}

func (s *Store) path(parts ...string) string {
	return filepath.Join(append([]string{s.Dir}, parts...)...)
}

// The digests that name paths were validated where they were parsed.

func (s *Store) layerPath(d digest.Digest) string { return s.path(layersDir, d.Encoded()) }
func (s *Store) blobPath(d digest.Digest) string  { return s.path(blobsDir, d.Encoded()) }
func (s *Store) treePath(d digest.Digest) string  { return s.path(treesDir, s.boot, d.Encoded()) }

func (s *Store) recordPath(ref string) string {
	sum := sha256.Sum256([]byte(ref))
	return s.path(imagesDir, hex.EncodeToString(sum[:])+".json")
}

// sha256Digest accepts the one algorithm that names paths here.
func sha256Digest(d digest.Digest) error {
	if err := d.Validate(); err != nil {
		return fmt.Errorf("digest %q: %w", d, err)
	}
	if d.Algorithm() != digest.SHA256 {
		return fmt.Errorf("digest %q: only sha256 is supported", d)
	}
	return nil
}

// temp makes a new directory in ingest/.
func (s *Store) temp() (string, error) { return os.MkdirTemp(s.path(ingestDir), "") }

// writeFile makes path with data durably: whoever sees the name after a power
// cut sees all of the data. The directory is not synced.
func (s *Store) writeFile(path string, data []byte) error {
	temp, err := s.prepare(data)
	if err != nil {
		return err
	}
	defer os.Remove(temp)
	return os.Rename(temp, path)
}

// prepare writes data durably to a new file in ingest/, to be renamed from
// there.
func (s *Store) prepare(data []byte) (path string, err error) {
	f, err := os.CreateTemp(s.path(ingestDir), "")
	if err != nil {
		return "", err
	}
	_, err = f.Write(data)
	if err == nil {
		err = fdatasync(f)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return "", errors.Join(err, os.Remove(f.Name()))
	}
	return f.Name(), nil
}

func writeSynced(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = fdatasync(f)
	}
	return errors.Join(err, f.Close())
}

func readJSON(path string, v any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("parse %s: %w", path, err)
	}
	return nil
}

func fdatasync(f *os.File) error {
	return os.NewSyscallError("fdatasync", unix.Fdatasync(int(f.Fd())))
}

// syncDir makes the names in a directory durable.
func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// discard moves path out of sight and deletes it in the background; Close
// waits. Nil if there is nothing at path.
func (s *Store) discard(path string) error {
	to := s.path(trashDir, s.boot+"-"+strconv.FormatInt(s.trashed.Add(1), 10))
	err := os.Rename(path, to)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	s.delete(to)
	return nil
}

// bootID is this boot's identity.
func bootID() (string, error) {
	data, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return string(bytes.TrimSpace(data)), err
}
