package main

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// How long follow waits before it asks for the container's state again: it
// begins with the least and doubles that while nothing is written.
const (
	leastWait = 20 * time.Millisecond
	mostWait  = 400 * time.Millisecond
)

// follow passes on a container's log until the container has ended, and returns
// its status then. It goes on while the daemon is restarted. Without a log it
// only waits.
func (c *client) follow(ctx context.Context, id string, log *logReader, emit func(logEntry) error) (*runtimeapi.ContainerStatus, error) {
	var written *dirWatch
	defer func() { written.close() }()
	wait := leastWait
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		// First the state, then the log: a container is not EXITED before its
		// log is complete.
		resp, err := c.runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id})
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if err != nil && status.Code(err) != codes.Unavailable {
			return nil, err
		}
		n := 0
		if log != nil {
			if log.path == "" {
				log.path = resp.GetStatus().GetLogPath()
			}
			if written == nil && log.path != "" {
				written = watchDir(filepath.Dir(log.path)) // before the read: what comes after it wakes us
			}
			if n, err = log.read(emit); err != nil {
				return nil, err
			}
		}
		if state := resp.GetStatus().GetState(); resp != nil && state != runtimeapi.ContainerState_CONTAINER_RUNNING {
			return resp.GetStatus(), nil
		}
		if wait = min(2*wait, mostWait); n > 0 {
			wait = leastWait
		}
		timer.Reset(wait)
		select {
		case <-written.changed():
		case <-timer.C:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// dirWatch wakes whoever reads a log in a directory: a shell's prompt must not
// wait for the next look. Where the kernel has none to give, it is nil and never
// wakes anybody.
type dirWatch struct {
	inotify *os.File
	events  chan struct{}
	reading sync.WaitGroup
}

func watchDir(dir string) *dirWatch {
	fd, err := syscall.InotifyInit1(syscall.IN_CLOEXEC | syscall.IN_NONBLOCK)
	if err != nil {
		return nil
	}
	w := &dirWatch{inotify: os.NewFile(uintptr(fd), "inotify"), events: make(chan struct{}, 1)}
	if _, err := syscall.InotifyAddWatch(fd, dir, syscall.IN_MODIFY|syscall.IN_CREATE|syscall.IN_MOVED_TO); err != nil {
		w.inotify.Close()
		return nil
	}
	w.reading.Go(func() {
		events := make([]byte, 4<<10)
		for {
			if _, err := w.inotify.Read(events); err != nil {
				return // closed
			}
			select {
			case w.events <- struct{}{}:
			default: // it is known already that there is something
			}
		}
	})
	return w
}

func (w *dirWatch) changed() <-chan struct{} {
	if w == nil {
		return nil
	}
	return w.events
}

func (w *dirWatch) close() {
	if w != nil {
		w.inotify.Close()
		w.reading.Wait()
	}
}
