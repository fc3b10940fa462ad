package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// errDetached ends a session whose detach keys were typed.
var errDetached = errors.New("detached")

// keyboard is what a container in the foreground reads.
type keyboard struct {
	in       io.Reader
	terminal *terminal // nil: the container has no tty, or gets no input
}

// attend shows a container's output until it has ended, gives it what keys has
// (which may be nil), and returns its exit code. When ctx ends it stops the
// container, and kills it when another signal comes. It stops it also when its
// output cannot be written, and returns an unheardError then.
//
// The output is read from the container's log, not by attaching: an attach that
// begins after the start misses the first lines, one that is slow is dropped, and
// one does not outlive a restart of berthd. So only input is attached.
func (c *client) attend(ctx context.Context, id string, keys *keyboard, out *logPrinter) (code int, err error) {
	ctx, unheard := context.WithCancelCause(ctx)
	defer unheard(nil)
	following, giveUp := context.WithCancelCause(context.WithoutCancel(ctx))
	defer giveUp(nil)
	typing, endTyping := context.WithCancel(following)
	defer endTyping()
	ended := make(chan struct{})
	var minding sync.WaitGroup
	minding.Go(func() {
		select {
		case <-ended:
			return
		case <-ctx.Done():
		}
		if err := c.stopInsisting(following, context.Cause(ctx), id); err != nil {
			giveUp(err)
		}
	})
	if keys != nil {
		minding.Go(func() {
			defer keys.terminal.onPanic()
			if err := c.feed(typing, id, keys); err != nil {
				giveUp(err)
			}
		})
	}
	log := &logReader{}
	defer log.close()
	var lost error
	status, err := c.follow(following, id, log, func(e logEntry) error {
		if lost != nil {
			return nil
		}
		if err := out.print(e); err != nil {
			lost = unheardError{err}
			unheard(lost)
		}
		return nil
	})
	close(ended)
	endTyping()
	minding.Wait()
	if err == nil {
		err = lost
	}
	return int(status.GetExitCode()), err
}

// unheardError ended a container whose output could not be written: whoever read
// it is gone, or the disk is full.
type unheardError struct{ error }

func (e unheardError) Unwrap() error { return e.error }

// stopInsisting stops the container, with all its grace only while nobody who
// sent the first signal, why, sends another one.
func (c *client) stopInsisting(ctx context.Context, why error, id string) error {
	signal := interrupted{}
	errors.As(why, &signal)
	stopped := make(chan error, 1)
	go func() { stopped <- c.stopContainer(ctx, id, stopGrace) }()
	select {
	case err := <-stopped:
		return err
	case <-signal.again:
	}
	return errors.Join(c.stopContainer(ctx, id, 0), <-stopped)
}

// feed attaches keys to the container until that has ended, or ctx has. A
// container that ends before or meanwhile is no error.
func (c *client) feed(ctx context.Context, id string, keys *keyboard) error {
	ctx, leave := context.WithCancelCause(ctx)
	defer leave(nil)
	req := &runtimeapi.AttachRequest{ContainerId: id, Stdin: true, Tty: keys.terminal != nil}
	resp, err := c.runtime.Attach(ctx, req)
	if err == nil {
		io, stop := keys.session(func() { leave(errDetached) })
		err = io.converse(ctx, resp.GetUrl())
		stop()
	}
	if err == nil || errors.Is(err, errDetached) {
		return err
	}
	if ctx.Err() != nil {
		return nil
	}
	if s, serr := c.runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id}); serr == nil &&
		s.GetStatus().GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return nil
	}
	return fmt.Errorf("%s; the container goes on: `berth attach %s`", message(err), shortID(id))
}

// session is the input side of a session, of a terminal with its window's size
// and with detach keys. stop ends what belongs to it.
func (k *keyboard) session(detach func()) (s stdio, stop func()) {
	s = stdio{in: k.in, terminal: k.terminal}
	if k.terminal == nil {
		return s, func() {}
	}
	s.tty = true
	s.in = &detachable{in: k.in, detach: detach}
	s.resize, stop = k.terminal.sizes()
	return s, stop
}

// stopGrace is how long a container may take to end by itself, as elsewhere.
const stopGrace = 10 * time.Second
