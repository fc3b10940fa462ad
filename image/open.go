package image

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"berth/image/rootfs"
)

// Registries is how registries are spoken to.
type Registries struct {
	PlainHTTP []string      // hosts (host or host:port) spoken to in plain HTTP
	Timeout   time.Duration // without progress, until a pull is given up; 0: one minute
	MinRate   int64         // bytes per second, over Timeout, that count as progress; 0: registry.DefaultMinRate
}

// Store is a directory of images. Set the exported fields, then Open; after
// that its methods may be called from any goroutine, until Close.
type Store struct {
	Dir        string            // absolute; /var/lib/berth
	Registries Registries        // after Open, SetRegistries changes them
	MaxWindow  int64             // bytes that a zstd frame may ask for; 0: layer.DefaultMaxWindow
	Platform   *ocispec.Platform // whose images are pulled; nil: this machine's

	boot    string       // boot id
	lock    *os.File     // flock, so that two processes never share a store
	busy    keyed        // who makes a root, a layer, or fetches what was promised
	slots   slots        // of layers being downloaded
	work    tasks        // deletions in the background
	trashed atomic.Int64 // makes names in trash/ unique

	keepTime time.Duration // keepTime, but for tests

	memory budget // of all pulls

	deleting sync.Mutex // one deletion at a time: the disk belongs to the containers
	survey   *survey    // of writable layers; nil before Open

	mu      sync.Mutex
	images  map[digest.Digest]*Image
	records map[string]*entry // by reference
	roots   map[string]claim  // by container id
	layers  map[digest.Digest]*content
	blobs   map[digest.Digest]*content
	flights map[promise]*flight           // of pulls under way
	kept    map[digest.Digest]*time.Timer // layers of failed pulls, each with a claim
}

// Open makes the directory if need be, finishes what a crash left half done,
// and reads what is there. It fails when another process has the store open.
func (s *Store) Open(ctx context.Context) (err error) {
	if !filepath.IsAbs(s.Dir) {
		return fmt.Errorf("open image store %q: the path is not absolute", s.Dir)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("open image store %s: %w", s.Dir, err), s.Close())
		}
	}()
	if s.boot, err = bootID(); err != nil {
		return err
	}
	s.images = map[digest.Digest]*Image{}
	s.records = map[string]*entry{}
	s.roots = map[string]claim{}
	s.layers = map[digest.Digest]*content{}
	s.blobs = map[digest.Digest]*content{}
	s.flights = map[promise]*flight{}
	s.kept = map[digest.Digest]*time.Timer{}
	s.keepTime = cmp.Or(s.keepTime, keepTime)
	s.survey = newSurvey()
	if err := s.makeDirs(); err != nil {
		return err
	}
	if err := s.takeLock(); err != nil {
		return err
	}
	for _, step := range []func() error{s.sweepTemporary, s.readLayers, s.readBlobs, s.readRecords, s.readRoots, s.sweepUnclaimed, s.sweepTrees} {
		if err := errors.Join(ctx.Err(), step()); err != nil {
			return err
		}
	}
	s.survey.start(s.measure)
	return nil
}

// Close ends the survey, waits for deletions and lets go of the directory. No
// other method may be running.
func (s *Store) Close() error {
	if s.survey != nil {
		s.survey.close()
	}
	s.stopKeeping()
	s.work.Wait()
	if s.lock == nil {
		return nil
	}
	err := s.lock.Close()
	s.lock = nil
	return err
}

// SetRegistries is for the pulls that begin after it.
func (s *Store) SetRegistries(r Registries) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.Registries = r
}

func (s *Store) makeDirs() error {
	if err := os.MkdirAll(s.Dir, 0o700); err != nil {
		return err
	}
	for _, dir := range []string{layersDir, blobsDir, imagesDir, containersDir, filepath.Join(treesDir, s.boot), ingestDir, trashDir} {
		if err := os.MkdirAll(s.path(dir), 0o700); err != nil {
			return err
		}
	}
	return nil
}

// takeLock waits as the daemon does for its own locks: see cmd/berthd/lock.go.
func (s *Store) takeLock() error {
	f, err := os.OpenFile(s.path("lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	for deadline := time.Now().Add(lockTime); errors.Is(err, unix.EWOULDBLOCK) && time.Now().Before(deadline); {
		<-time.After(time.Millisecond)
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return errors.New("another process has it open")
		}
		return os.NewSyscallError("flock", err)
	}
	s.lock = f
	return nil
}

// lockTime is how long a lock may outlive its process: one that it was just
// forking has the lock as well, until it executes its program.
const lockTime = time.Second

// delete removes path in the background.
func (s *Store) delete(path string) {
	s.work.Go(func() {
		s.deleting.Lock()
		defer s.deleting.Unlock()
		if err := removeAll(path); err != nil {
			klog.ErrorS(err, "Trash is not deleted, the next start does it", "path", path)
		}
	})
}

// removeAll is for what containers and images have made, which may be as deep as a disk
// allows.
func removeAll(path string) error {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return rootfs.RemoveAll(context.Background(), dir, filepath.Base(path))
}

// sweepTemporary deletes what a crash left in ingest/ and trash/.
func (s *Store) sweepTemporary() error {
	s.trashed.Store(time.Now().UnixNano()) // above every name that is there
	for _, dir := range []string{ingestDir, trashDir} {
		names, err := list(s.path(dir))
		if err != nil {
			return err
		}
		for _, name := range names {
			if err := s.discard(s.path(dir, name)); err != nil {
				return err
			}
		}
	}
	return nil
}

// readLayers finds the complete layers. One that is not was never renamed here
// by this package: it goes to the trash.
func (s *Store) readLayers() error {
	return s.eachDigest(layersDir, func(d digest.Digest) error {
		var meta layerMeta
		if err := readJSON(filepath.Join(s.layerPath(d), "meta.json"), &meta); err != nil {
			return err
		}
		info, err := os.Lstat(filepath.Join(s.layerPath(d), "layer.tar"))
		if err != nil {
			return err
		}
		if !info.Mode().IsRegular() || info.Size() != meta.Size {
			return fmt.Errorf("layer.tar has %d bytes instead of %d", info.Size(), meta.Size)
		}
		s.layers[d] = &content{present: true, size: meta.Size, blobs: meta.Blobs}
		return nil
	})
}

// readBlobs finds the blobs; they are small enough to be proven each time.
func (s *Store) readBlobs() error {
	return s.eachDigest(blobsDir, func(d digest.Digest) error {
		data, err := os.ReadFile(s.blobPath(d))
		if err != nil {
			return err
		}
		if digest.FromBytes(data) != d {
			return errors.New("content does not have its digest")
		}
		s.blobs[d] = &content{present: true, size: int64(len(data))}
		return nil
	})
}

// eachDigest calls read for each sha256 named in dir; what is no digest, or
// cannot be read, is discarded.
func (s *Store) eachDigest(dir string, read func(digest.Digest) error) error {
	names, err := list(s.path(dir))
	if err != nil {
		return err
	}
	for _, name := range names {
		d := digest.NewDigestFromEncoded(digest.SHA256, name)
		err := sha256Digest(d)
		if err == nil {
			err = read(d)
		}
		if err == nil {
			continue
		}
		klog.ErrorS(err, "Damaged content is removed from the image store", "path", s.path(dir, name))
		if err := s.discard(s.path(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// readRecords makes images visible whose content is all there.
func (s *Store) readRecords() error {
	names, err := list(s.path(imagesDir))
	if err != nil {
		return err
	}
	for _, name := range names {
		path := s.path(imagesDir, name)
		e, err := s.readRecord(path)
		if err == nil {
			s.installLocked(e)
			continue
		}
		klog.ErrorS(err, "Image is withdrawn: pull it again", "record", path)
		if err := s.discard(path); err != nil {
			return err
		}
	}
	return nil
}

// readRoots claims the layers of this boot's containers. Those of another boot
// are volatile: nobody may use them again.
func (s *Store) readRoots() error {
	ids, err := list(s.path(containersDir))
	if err != nil {
		return err
	}
	for _, id := range ids {
		r, err := readRoot(s.path(containersDir, id))
		if err == nil && r.Boot == s.boot {
			views, err := s.readViews(id)
			if err != nil {
				return err
			}
			c := newClaim(append(r.Layers, views...))
			s.roots[id] = c
			s.holdLocked(c)
			continue
		}
		if err != nil {
			klog.ErrorS(err, "Damaged writable layer is removed", "container", id)
		}
		if err := s.discard(s.path(containersDir, id)); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) sweepUnclaimed() error {
	for d, l := range s.layers {
		if l.claims == 0 {
			delete(s.layers, d)
			s.deleteLayerLocked(d)
		}
	}
	for d, b := range s.blobs {
		if b.claims == 0 {
			delete(s.blobs, d)
			if err := s.discard(s.blobPath(d)); err != nil {
				return err
			}
		}
	}
	return nil
}

// sweepTrees deletes the trees of other boots, whose data may never have
// reached the disk, and of layers that nothing needs. A container may run on a
// tree whose layer is damaged.
func (s *Store) sweepTrees() error {
	boots, err := list(s.path(treesDir))
	if err != nil {
		return err
	}
	for _, boot := range boots {
		if boot == s.boot {
			continue
		}
		if err := s.discard(s.path(treesDir, boot)); err != nil {
			return err
		}
	}
	return s.eachDigest(filepath.Join(treesDir, s.boot), func(d digest.Digest) error {
		l := s.layers[d]
		if l == nil {
			return s.discard(s.treePath(d))
		}
		t, err := s.readTree(d)
		l.tree = infoOf(t)
		return err
	})
}

func list(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, nil
}
