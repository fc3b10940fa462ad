package keeper

import (
	"sync"

	"berth/oci/keeper/wire"
)

// queue sends notices to one peer in order without blocking who puts them in. A
// peer that does not read costs memory: one State for each process that ends.
type queue struct {
	peer *wire.Peer

	mu      sync.Mutex
	waiting []notice
	sending bool // a goroutine empties waiting
	closed  bool
}

type notice struct {
	op   string
	body any
}

func newQueue(p *wire.Peer) *queue { return &queue{peer: p} }

// put adds a notice. A nil queue is that of a peer who is not there.
func (q *queue) put(op string, body any) {
	if q == nil {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return
	}
	q.waiting = append(q.waiting, notice{op, body})
	if !q.sending {
		q.sending = true
		go q.send()
	}
}

// close drops what waits. A nil queue has nothing.
func (q *queue) close() {
	if q == nil {
		return
	}
	q.mu.Lock()
	q.closed, q.waiting = true, nil
	q.mu.Unlock()
}

func (q *queue) send() {
	for {
		q.mu.Lock()
		if len(q.waiting) == 0 {
			q.sending = false
			q.mu.Unlock()
			return
		}
		n := q.waiting[0]
		q.waiting = q.waiting[1:]
		q.mu.Unlock()
		if q.peer.Notify(n.op, n.body) != nil {
			q.close() // the peer is gone; whoever follows asks for the state
		}
	}
}
