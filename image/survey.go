package image

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

// A survey measures writable layers: on one goroutine of its own, one layer after
// the other, and only those that somebody asks for. Who asks gets what was
// measured last and never waits for a disk.
type survey struct {
	stop    context.CancelFunc // nil before start
	running sync.WaitGroup
	wake    chan struct{} // holds a token while queue has something
	pause   time.Duration // between two measurements of a layer

	mu    sync.Mutex
	known map[string]*measured // by container id
	queue []string             // asked for and due
}

// measured is what is known of one writable layer.
type measured struct {
	usage  Usage // At is zero before the first walk
	queued bool

	walked time.Time     // when its last walk began
	took   time.Duration // the walk
	free   freeSpace     // before the walk
}

const (
	surveyPause = 10 * time.Second // between two measurements of a layer: the kubelet asks as often
	surveyShare = 10               // a layer is left alone for so many times as long as its walk took
	surveyFaith = 5 * time.Minute  // for how long freeSpace alone is believed
)

// freeSpace is what the filesystem of a layer has free. While both numbers stay
// the same nobody has written to the layer; that one wrote exactly as much as
// another deleted does not stay so for long.
type freeSpace struct{ blocks, files uint64 }

func newSurvey() *survey {
	return &survey{wake: make(chan struct{}, 1), pause: surveyPause, known: map[string]*measured{}}
}

// start lets measure be called for what is asked for, until close.
func (s *survey) start(measure func(ctx context.Context, id string) error) {
	ctx, stop := context.WithCancel(context.Background())
	s.stop = stop
	s.running.Go(func() { s.keep(ctx, measure) })
}

func (s *survey) close() {
	if s.stop != nil {
		s.stop()
	}
	s.running.Wait()
}

func (s *survey) keep(ctx context.Context, measure func(ctx context.Context, id string) error) {
	for {
		select {
		case <-s.wake:
		case <-ctx.Done():
			return
		}
		for id := s.next(); id != ""; id = s.next() {
			err := measure(ctx, id)
			if ctx.Err() != nil {
				return
			}
			if err != nil {
				klog.ErrorS(err, "Measuring a writable layer; trying again when it is asked for", "container", id)
			}
		}
	}
}

// made says that a layer is new and empty.
func (s *survey) made(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.known[id] = &measured{usage: Usage{Inodes: 1, At: time.Now()}}
}

func (s *survey) forget(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.known, id)
}

// ask returns what was measured last, and has it measured again if that is due.
func (s *survey) ask(id string) Usage {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.known[id]
	if m == nil {
		m = &measured{}
		s.known[id] = m
	}
	if !m.queued && time.Since(m.usage.At) >= max(s.pause, surveyShare*m.took) {
		m.queued = true
		s.queue = append(s.queue, id)
		select {
		case s.wake <- struct{}{}:
		default:
		}
	}
	return m.usage
}

// next takes the first of the queue; "" if there is none.
func (s *survey) next() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.queue) == 0 {
		return ""
	}
	id := s.queue[0]
	s.queue = s.queue[1:]
	return id
}

// measure brings what is known of a layer up to date.
func (s *Store) measure(ctx context.Context, id string) error {
	s.survey.mu.Lock()
	m := s.survey.known[id]
	if m == nil { // removed since it was asked for
		s.survey.mu.Unlock()
		return nil
	}
	now := *m
	s.survey.mu.Unlock()

	err := now.update(ctx, s.path(containersDir, id, "upper"), s.path(containersDir, id, volumesDir))

	s.survey.mu.Lock()
	defer s.survey.mu.Unlock()
	if err == nil {
		*m = now
	}
	m.queued = false
	if errors.Is(err, fs.ErrNotExist) { // removed meanwhile
		return nil
	}
	return err
}

// update measures the layer whose upper directory is at upper, with its volumes,
// unless nothing was written since.
func (m *measured) update(ctx context.Context, upper, volumes string) error {
	at := time.Now()
	var st unix.Statfs_t
	if err := unix.Statfs(upper, &st); err != nil {
		return &os.PathError{Op: "statfs", Path: upper, Err: err}
	}
	free := freeSpace{st.Bfree, st.Ffree}
	if free != m.free || at.Sub(m.walked) >= surveyFaith {
		bytes, inodes, err := walk(ctx, upper)
		if err != nil {
			return err
		}
		more, moreInodes, err := walk(ctx, volumes)
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // most images have none
			return err
		}
		m.usage.Bytes, m.usage.Inodes = bytes+more, inodes+moreInodes
		m.walked, m.took, m.free = at, time.Since(at), free
	}
	m.usage.At = at
	return nil
}
