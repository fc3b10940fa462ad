package wire

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
)

// Remote is an error that the other end replied with.
type Remote struct{ Text string }

func (e *Remote) Error() string { return e.Text }

// Request is a request or a notice as its handler gets it.
type Request struct {
	Op    string
	Files []*os.File // the handler's to close
	seq   uint64
	body  json.RawMessage
	peer  *Peer
}

// Decode reads the request's body.
func (r *Request) Decode(v any) error {
	if err := json.Unmarshal(r.body, v); err != nil {
		return fmt.Errorf("decode %s: %w", r.Op, err)
	}
	return nil
}

// Peer is the connection it came by.
func (r *Request) Peer() *Peer { return r.peer }

// Reply answers once; v is the body, err the error. The files are the caller's
// to close. To a notice it does nothing.
func (r *Request) Reply(v any, err error, files ...*os.File) {
	if r.seq == 0 {
		return
	}
	m := Message{Seq: r.seq}
	if err == nil {
		m.Body, err = json.Marshal(v)
	}
	if err != nil {
		m.Error, m.Body, files = err.Error(), nil, nil
	}
	// Whoever asked may be gone, and then asks again by another connection.
	if err := r.peer.conn.Send(m, files...); err != nil && !errors.Is(err, ErrLost) {
		_ = r.peer.conn.Send(Message{Seq: r.seq, Error: err.Error()}) // it fits in no message
	}
}

// Peer pairs requests with replies over one connection.
type Peer struct {
	conn *Conn
	done chan struct{} // closed when the connection has ended

	mu    sync.Mutex
	seq   uint64
	calls map[uint64]chan<- reply
	lost  bool
}

type reply struct {
	m     Message
	files []*os.File
}

// NewPeer talks over conn. Serve must run for calls to return.
func NewPeer(conn *Conn) *Peer {
	return &Peer{conn: conn, done: make(chan struct{}), calls: make(map[uint64]chan<- reply)}
}

// Done is closed when the connection has ended.
func (p *Peer) Done() <-chan struct{} { return p.done }

// Close ends the connection; Serve returns.
func (p *Peer) Close() error { return p.conn.Close() }

// Serve receives until the connection ends. Requests and notices of the other
// end go to handle in order, on this goroutine.
func (p *Peer) Serve(handle func(*Request)) {
	defer p.hangUp()
	for {
		m, files, err := p.conn.Recv()
		if err != nil {
			return
		}
		if m.Op != "" {
			handle(&Request{Op: m.Op, Files: files, seq: m.Seq, body: m.Body, peer: p})
			continue
		}
		p.mu.Lock()
		ch := p.calls[m.Seq]
		delete(p.calls, m.Seq)
		p.mu.Unlock()
		if ch == nil { // the caller gave up
			CloseAll(files)
			continue
		}
		ch <- reply{m, files}
	}
}

func (p *Peer) hangUp() {
	p.conn.Close()
	p.mu.Lock()
	p.lost = true
	for seq, ch := range p.calls {
		delete(p.calls, seq)
		close(ch)
	}
	p.mu.Unlock()
	close(p.done)
}

// Notify sends a notice.
func (p *Peer) Notify(op string, v any, files ...*os.File) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s: %w", op, err)
	}
	return p.conn.Send(Message{Op: op, Body: body}, files...)
}

// Call sends a request and decodes its reply into out (nil: dropped). The
// returned files are the caller's. ErrLost when the connection ended first, a
// *Remote error when the other end refused.
func (p *Peer) Call(ctx context.Context, op string, in, out any, files ...*os.File) ([]*os.File, error) {
	body, err := json.Marshal(in)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", op, err)
	}
	ch := make(chan reply, 1)
	p.mu.Lock()
	if p.lost {
		p.mu.Unlock()
		return nil, ErrLost
	}
	p.seq++
	seq := p.seq
	p.calls[seq] = ch
	p.mu.Unlock()

	if err := p.conn.Send(Message{Op: op, Seq: seq, Body: body}, files...); err != nil {
		p.abandon(seq, ch)
		return nil, err
	}
	select {
	case r, ok := <-ch:
		return r.result(op, ok, out)
	case <-ctx.Done():
		p.abandon(seq, ch)
		return nil, ctx.Err()
	}
}

// abandon forgets a call; the files of an answer that came meanwhile are closed.
func (p *Peer) abandon(seq uint64, ch <-chan reply) {
	p.mu.Lock()
	_, waiting := p.calls[seq]
	delete(p.calls, seq)
	p.mu.Unlock()
	if waiting {
		return
	}
	if r, ok := <-ch; ok {
		CloseAll(r.files)
	}
}

func (r reply) result(op string, ok bool, out any) ([]*os.File, error) {
	if !ok {
		return nil, ErrLost
	}
	if r.m.Error != "" {
		CloseAll(r.files)
		return nil, &Remote{Text: r.m.Error}
	}
	if out != nil {
		if err := json.Unmarshal(r.m.Body, out); err != nil {
			CloseAll(r.files)
			return nil, fmt.Errorf("decode reply to %s: %w", op, err)
		}
	}
	return r.files, nil
}
