package runner

import (
	"errors"
	"time"

	"berth/oci/keeper"

	"golang.org/x/sys/unix"
)

// A container may lock its own FIFO for as long as it likes: splice(2) from it to
// a terminal or a socket that takes nothing holds the lock of the pipe, and
// whoever opens, reads or closes the FIFO, or asks how much it holds, waits for
// that, O_NONBLOCK or not. So no read is done with output.mu held, and the loop
// that waits too long is left with the stream that holds it up.

// readPatience is how long the loop waits for one read: what the first such
// stream of a container may cost all others, once.
const readPatience = 50 * time.Millisecond

// reader is one goroutine's time as the loop.
type reader struct {
	out      *output
	slot     *slot
	patience time.Duration
	late     *time.Timer // calls replace

	st       *stream // being read; guarded by output.mu, as replaced is
	replaced bool    // another goroutine is the loop
}

func (o *output) newReader(s *slot, patience time.Duration) *reader {
	r := &reader{out: o, slot: s, patience: patience}
	r.late = time.AfterFunc(patience, r.replace)
	r.late.Stop()
	return r
}

// loop reads for the runner's life.
func (o *output) loop() { o.newReader(o.takeSlot(0), readPatience).loop() }

// loop ends when a stream has held it up.
func (r *reader) loop() {
	for events := make([]unix.EpollEvent, 64); !r.replaced; {
		if _, err := r.turn(events, -1); err != nil {
			r.out.logger.Fatalf("wait for output: %v", err) // the next runner starts anew
		}
	}
}

// turn waits until something can be done, at most timeout milliseconds unless that is
// negative, and does a bounded part of each. It returns how much there was to do.
func (r *reader) turn(events []unix.EpollEvent, timeout int) (int, error) {
	n, err := unix.EpollWait(r.out.epoll, events, timeout)
	if err != nil && !errors.Is(err, unix.EINTR) {
		return 0, err
	}
	for _, e := range events[:max(n, 0)] {
		st := r.next(e)
		if st == nil {
			continue
		}
		r.late.Reset(r.patience)
		moved := r.out.move(st, r.slot, chunkSize)
		r.late.Stop()
		r.rest(st, e, moved)
		if r.replaced {
			break
		}
	}
	return max(n, 0), nil
}

// next is the stream that e tells of, and that r is to read. Clients are served
// here, and streams that have held up a loop are left to others.
func (r *reader) next(e unix.EpollEvent) *stream {
	o := r.out
	o.mu.Lock()
	defer o.mu.Unlock()
	if c := o.clients[e.Fd]; c != nil {
		o.serve(c)
		return nil
	}
	st := o.streams[e.Fd]
	if st == nil || st.busy {
		return nil
	}
	st.busy = true
	if st.alone {
		o.pause(st)
		go o.readAlone(st, e)
		return nil
	}
	r.st = st
	return st
}

// replace makes another goroutine the loop while r's waits for its stream.
func (r *reader) replace() {
	o := r.out
	o.mu.Lock()
	defer o.mu.Unlock()
	if r.st == nil || r.replaced || len(o.free) == 0 {
		return
	}
	o.logger.Printf("%s of %s: reading it takes long: it does not hold up others any more", r.st.name, r.st.sink.id)
	r.replaced, r.st.alone = true, true
	o.pause(r.st)
	go o.newReader(o.takeSlotLocked(0), r.patience).loop()
}

// rest is called after a read of n bytes that e asked for.
func (r *reader) rest(st *stream, e unix.EpollEvent, n int) {
	r.out.mu.Lock()
	defer r.out.mu.Unlock()
	r.st = nil
	r.out.idleLocked(st, e, n)
	if r.replaced {
		r.out.giveSlotLocked(r.slot)
	}
}

// slotsKept is how many slots are not for streams that have held up a loop.
const slotsKept = journalSlots / 4

// readAlone reads one chunk of such a stream.
func (o *output) readAlone(st *stream, e unix.EpollEvent) {
	slot := o.takeSlot(slotsKept)
	n := o.move(st, slot, chunkSize)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.giveSlotLocked(slot)
	o.idleLocked(st, e, n)
}

// idleLocked ends the reading of st, of which e told and n bytes were read: it waits
// for the next.
func (o *output) idleLocked(st *stream, e unix.EpollEvent, n int) {
	st.busy = false
	o.changed.Broadcast()
	switch {
	case st.sink.ended:
		st.closeIdle()
	default:
		// A terminal that was hung up (vhangup(2)) is ready for ever, without a byte,
		// until a process opens it again.
		o.watch(st, n == 0 && e.Events&(unix.EPOLLHUP|unix.EPOLLERR) != 0)
	}
}

// begin opens st and waits for its first bytes. st is busy.
func (o *output) begin(st *stream) {
	fd, err := st.open()
	o.mu.Lock()
	defer o.mu.Unlock()
	st.fd = fd
	if err != nil {
		o.logger.Printf("read %s of %s: %v", st.name, st.sink.id, err)
	}
	st.busy = false
	o.changed.Broadcast()
	if st.sink.ended {
		st.closeIdle()
	} else if err == nil {
		o.watch(st, false)
	}
}

// watch makes epoll tell when st can be read, or, with edge, when that changes.
func (o *output) watch(st *stream, edge bool) {
	op := unix.EPOLL_CTL_ADD
	if o.streams[int32(st.fd)] == st {
		op = unix.EPOLL_CTL_MOD
	}
	if st.draining || op == unix.EPOLL_CTL_MOD && edge == st.edge {
		return
	}
	st.edge = edge
	event := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(st.fd)}
	if edge {
		event.Events |= unix.EPOLLET
	}
	if err := unix.EpollCtl(o.epoll, op, st.fd, &event); err != nil && !errors.Is(err, unix.EEXIST) {
		o.logger.Printf("watch %s of %s: %v", st.name, st.sink.id, err)
		return
	}
	o.streams[int32(st.fd)] = st
}

// empty moves what st holds now, and lets nobody read from it any more.
func (o *output) empty(st *stream) {
	o.mu.Lock()
	st.draining = true
	o.pause(st)
	for st.busy {
		o.changed.Wait()
	}
	if st.sink.ended {
		o.mu.Unlock()
		return
	}
	st.busy = true
	kept := 0
	if st.alone {
		kept = slotsKept
	}
	slot := o.takeSlotLocked(kept)
	o.mu.Unlock()
	fd, err := st.open()
	o.mu.Lock()
	st.fd = fd
	o.mu.Unlock()
	if err != nil {
		o.logger.Printf("drain %s of %s: %v", st.name, st.sink.id, err)
	} else {
		for left := st.held(); left > 0; {
			n := o.move(st, slot, left)
			if n == 0 {
				break
			}
			left -= n
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.giveSlotLocked(slot)
	st.busy = false
	o.changed.Broadcast()
	st.closeIdle()
}

// leastRead is what is asked for where st seems to hold nothing: a FIFO may hold an
// empty buffer, which is ready to be read for ever until somebody reads it.
const leastRead = 4 << 10

// move takes at most limit bytes from a stream to its log and returns how many. st
// is busy for the caller, who does not hold mu: this may hang.
func (o *output) move(st *stream, slot *slot, limit int) int {
	want := st.available()
	if want == 0 {
		want = leastRead
	}
	want = min(want, limit, chunkSize)
	keeper.At("chunk seen")
	o.mu.Lock()
	buf := slot.expect(st, want)
	o.mu.Unlock()
	n, err := st.read(buf)
	o.mu.Lock()
	defer o.mu.Unlock()
	s := st.sink
	if err != nil {
		o.logger.Printf("read %s of %s: %v", st.name, s.id, err)
	}
	slot.have(s, n)
	if n > 0 {
		if !s.ended {
			o.write(s, st.name, buf[:n])
		}
		keeper.At("chunk written")
		slot.done()
		if !s.ended {
			o.hand(s, st.name, buf[:n])
		}
	}
	return n
}

// takeSlot waits for a slot that is not among the last kept ones.
func (o *output) takeSlot(kept int) *slot {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.takeSlotLocked(kept)
}

func (o *output) takeSlotLocked(kept int) *slot {
	for len(o.free) <= kept {
		o.changed.Wait()
	}
	s := o.free[0] // the last one given back
	o.free = o.free[1:]
	return s
}

func (o *output) giveSlotLocked(s *slot) {
	o.free = append([]*slot{s}, o.free...)
	o.changed.Broadcast()
}
