package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"

	"github.com/opencontainers/go-digest"

	"berth/image/rootfs"
)

// rootRecord is the root.json of a writable layer or a view.
type rootRecord struct {
	Boot   string          `json:"boot"`   // the upper directory is of this boot
	Layers []digest.Digest `json:"layers"` // diffIDs, base first
}

// Users are whose ids a root filesystem has.
type Users = rootfs.Users

// IDs are the ids of Users.
type IDs = rootfs.IDs

// containerID: its length has a bound of its own, as a longer pattern takes longer
// to compile at each start.
var containerID = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]*$`)

const maxContainerID = 128

// Root makes the writable layer of container id over img and returns its root
// filesystem as a detached mount, which the caller attaches or closes. It may
// be called again in the same boot; the layer's content stays. A writable layer
// does not outlive the boot: it is never synced, and Open deletes it after a
// reboot. Until RemoveRoot the image's layers are kept, also when the image is
// removed. With users, the same in each call, the root shows them the image's
// owners, and is theirs to write; nil are the host's. Errors: ErrNotFound (the
// image was removed meanwhile, or a layer is damaged), ErrNotSupported,
// *SpaceError, ctx's.
func (s *Store) Root(ctx context.Context, id string, img *Image, users *Users) (*os.File, error) {
	root, err := s.root(ctx, id, img, users)
	if err != nil {
		return nil, fmt.Errorf("root of container %s: %w", id, err)
	}
	return root, nil
}

func (s *Store) root(ctx context.Context, id string, img *Image, users *Users) (*os.File, error) {
	if len(id) > maxContainerID || !containerID.MatchString(id) {
		return nil, fmt.Errorf("%q is no container id", id)
	}
	unlock, err := s.busy.lock(ctx, "root "+id)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := s.writable(id, img, users); err != nil {
		return nil, s.spaceError(err, 0)
	}
	layers, err := s.rootLayers(ctx, s.path(containersDir, id), img)
	if err != nil {
		return nil, err
	}
	return s.mountRoot(ctx, s.path(containersDir, id), layers, users)
}

// overlay is that of layers with the directories that prepareRoot made in dir.
func overlay(dir string, layers []rootfs.Layer, users *Users) rootfs.Overlay {
	o := rootfs.Overlay{Upper: filepath.Join(dir, "upper"), Work: filepath.Join(dir, "work"), Users: users}
	for _, l := range layers {
		o.Lower = append(o.Lower, l.Root)
	}
	if len(layers) == 0 {
		o.Lower = []string{filepath.Join(dir, "empty")}
	}
	return o
}

// mountRoot mounts the root whose directories are in dir. What layers imply is adopted
// with the first mount, and stays in the upper directory.
func (s *Store) mountRoot(ctx context.Context, dir string, layers []rootfs.Layer, users *Users) (*os.File, error) {
	o := overlay(dir, layers, users)
	mount, err := rootfs.Mount(o)
	if err != nil {
		return nil, err
	}
	if err := s.adopt(ctx, mount, dir, o.Upper, layers, users); err != nil {
		return nil, errors.Join(err, mount.Close())
	}
	return mount, nil
}

// adoptedFile, in the directory of a root, says that what its layers imply is adopted.
const adoptedFile = "adopted"

func (s *Store) adopt(ctx context.Context, mount *os.File, dir, upper string, layers []rootfs.Layer, users *Users) error {
	if !slices.ContainsFunc(layers, func(l rootfs.Layer) bool { return len(l.Implied) > 0 }) {
		return nil
	}
	if err := rootfs.AdoptImplied(ctx, mount, upper, layers, users); err != nil {
		if errors.Is(err, rootfs.ErrInvalidTar) {
			return fmt.Errorf("%w: %w", ErrInvalidImage, err)
		}
		return err
	}
	return os.WriteFile(filepath.Join(dir, adoptedFile), nil, 0o600)
}

// writable makes the writable layer, or finds it. The caller has its lock.
func (s *Store) writable(id string, img *Image, users *Users) error {
	s.mu.Lock()
	_, there := s.roots[id]
	s.mu.Unlock()
	if there {
		r, err := readRoot(s.path(containersDir, id))
		if err == nil && !slices.Equal(r.Layers, img.Layers) {
			err = errors.New("it has a writable layer over another image")
		}
		return err
	}
	c := newClaim(img.Layers)
	if err := s.holdPresent(c); err != nil {
		return err
	}
	temp, err := s.prepareRoot(img, users)
	if err == nil {
		err = s.place(temp, s.path(containersDir, id))
	}
	if err != nil {
		s.release(c)
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.roots[id] = c
	s.survey.made(id)
	return nil
}

// prepareRoot makes, in ingest/, the directories that an overlay over img needs,
// and the record of what they claim.
func (s *Store) prepareRoot(img *Image, users *Users) (temp string, err error) {
	temp, err = s.temp()
	if err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.discard(temp))
		}
	}()
	for name, mode := range map[string]os.FileMode{"upper": 0o755, "work": 0o700, "empty": 0o700} {
		if err := mkdir(filepath.Join(temp, name), mode); err != nil {
			return "", err
		}
	}
	if users != nil { // before the mount: overlayfs takes its root's owner from here
		if err := os.Lchown(filepath.Join(temp, "upper"), int(users.UIDs.Host), int(users.GIDs.Host)); err != nil {
			return "", err
		}
	}
	data, err := json.Marshal(rootRecord{Boot: s.boot, Layers: img.Layers})
	if err != nil {
		return "", err
	}
	return temp, os.WriteFile(filepath.Join(temp, "root.json"), data, 0o600)
}

// place lets what was prepared appear whole, or discards it.
func (s *Store) place(temp, at string) error {
	if err := os.Rename(temp, at); err != nil {
		return errors.Join(err, s.discard(temp))
	}
	return nil
}

// mkdir makes a directory with exactly this mode, whatever the umask.
func mkdir(path string, mode os.FileMode) error {
	if err := os.Mkdir(path, mode); err != nil {
		return err
	}
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Chmod(mode), dir.Close())
}

func readRoot(dir string) (rootRecord, error) {
	var r rootRecord
	if err := readJSON(filepath.Join(dir, "root.json"), &r); err != nil {
		return r, err
	}
	for _, d := range r.Layers {
		if err := sha256Digest(d); err != nil {
			return r, err
		}
	}
	return r, nil
}

// rootLayers are the trees of an image, the uppermost first, made where they
// are missing. What they imply is not said for a root in dir that has adopted it.
func (s *Store) rootLayers(ctx context.Context, dir string, img *Image) ([]rootfs.Layer, error) {
	_, err := os.Lstat(filepath.Join(dir, adoptedFile))
	adopted := err == nil
	var layers []rootfs.Layer
	for _, d := range slices.Backward(img.Layers) {
		if err := s.ensureTree(ctx, d); err != nil {
			return nil, err
		}
		layer := rootfs.Layer{Root: filepath.Join(s.treePath(d), "root")}
		s.mu.Lock()
		implies := s.layerLocked(d).tree.Implies
		s.mu.Unlock()
		if implies && !adopted {
			t, err := s.readTree(d)
			if err != nil {
				return nil, err
			}
			layer.Implied = t.Implied
		}
		layers = append(layers, layer)
	}
	return layers, nil
}

// RemoveRoot deletes the writable layer, the views and the volumes of the container in the
// background, and what only they kept; nil if there is none. Their mounts should
// be gone.
func (s *Store) RemoveRoot(ctx context.Context, id string) error {
	unlock, err := s.busy.lock(ctx, "root "+id)
	if err != nil {
		return err
	}
	defer unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := s.roots[id]
	if !ok {
		return nil
	}
	if err := s.discard(s.path(containersDir, id)); err != nil {
		return fmt.Errorf("remove root of container %s: %w", id, err)
	}
	delete(s.roots, id)
	s.survey.forget(id)
	s.releaseLocked(c)
	return nil
}

// Roots lists the containers that have a writable layer, sorted.
func (s *Store) Roots() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	ids := make([]string, 0, len(s.roots))
	for id := range s.roots {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}
