package cri

import (
	"container/list"
	"fmt"
	"net"
	"net/http"
	"sync"
	"syscall"

	"k8s.io/klog/v2"
)

const (
	// maxWaiting bounds the connections that have not shown a token.
	maxWaiting = 128
	// maxStreamFiles bounds the descriptors of all sessions together, and so does
	// half of what berthd may open: the other half is for the lives of pods.
	maxStreamFiles = 16 << 10
	// sessionFiles are the descriptors of a session: the connection and its
	// duplicate, and both ends of three pipes while a command begins.
	sessionFiles = 8
	// forwardFiles are those of one forwarded connection: the socket, and what
	// making it in the pod's network takes.
	forwardFiles = 3
)

// door is a listener that lets in only clients whose connection comes straight from
// a trusted process of this host, and keeps few of them waiting: when one too many
// connects, the oldest of those without a token goes. A client with a token shows
// it at once, so others can delay it but not shut it out.
type door struct {
	net.Listener

	mu      sync.Mutex
	waiting list.List // net.Conn, the oldest first
	places  map[net.Conn]*list.Element
}

func newDoor(l net.Listener) *door { return &door{Listener: l, places: map[net.Conn]*list.Element{}} }

func (d *door) Accept() (net.Conn, error) {
	for {
		c, err := d.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if err = checkPeer(c); err == nil {
			return c, nil
		}
		klog.V(callLevel).InfoS("Streaming client refused", "reason", err)
		c.Close()
	}
}

// changed is called by the HTTP server with each state of a connection.
func (d *door) changed(c net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		d.mu.Lock()
		d.places[c] = d.waiting.PushBack(c)
		var oldest net.Conn
		if d.waiting.Len() > maxWaiting {
			oldest = d.leaveLocked(d.waiting.Front().Value.(net.Conn))
		}
		d.mu.Unlock()
		if oldest != nil {
			oldest.Close()
		}
	case http.StateHijacked, http.StateClosed:
		d.leave(c)
	}
}

// leave is called when a connection has shown its token or is closed.
func (d *door) leave(c net.Conn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.leaveLocked(c)
}

func (d *door) leaveLocked(c net.Conn) net.Conn {
	if place := d.places[c]; place != nil {
		d.waiting.Remove(place)
		delete(d.places, c)
	}
	return c
}

// quota is how many descriptors may still be opened.
type quota struct {
	mu   sync.Mutex
	free int
}

// streamFiles is the quota of all sessions.
func streamFiles() (*quota, error) {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return nil, fmt.Errorf("read RLIMIT_NOFILE: %w", err)
	}
	half := min(limit.Cur/2, maxStreamFiles)
	return &quota{free: max(0, int(half)-maxWaiting)}, nil
}

// take tells whether n descriptors could be had. Who took them gives them back.
func (q *quota) take(n int) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.free < n {
		return false
	}
	q.free -= n
	return true
}

func (q *quota) give(n int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.free += n
}
