package cri

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/sandbox"
)

const (
	// tokenLife is how long a URL may wait for its client.
	tokenLife = time.Minute
	// maxOffers and maxOffered bound the URLs that wait for a client, and the
	// bytes of their requests.
	maxOffers  = 1000
	maxOffered = 64 << 20
	// requestTimeout bounds how long a client takes to send its request, with all
	// that it says its body has. A session has no such bound: a shell in which
	// nobody types for a day is as it should be.
	requestTimeout = 10 * time.Second
	maxHeader      = 32 << 10
	// reachTimeout bounds the proof that an URL leads to berthd.
	reachTimeout = 2 * time.Second
	// listenTries is how many free ports are tried where others are redirected.
	listenTries = 8
)

// Streaming serves the URLs that Exec, Attach and PortForward return, over SPDY
// and WebSocket, on loopback: the kubelet passes its clients on. A URL holds a
// token, which is good for one session and for a minute.
type Streaming struct {
	door      *door
	files     *quota           // descriptors that sessions may still open
	now       func() time.Time // time.Now but in tests
	heartbeat time.Duration    // of sessions; shorter in tests
	patience  time.Duration    // requestTimeout but in tests

	mu       sync.Mutex
	offers   map[string]*offer // by token
	queue    []*offer          // by age
	offered  int               // bytes
	closed   bool              // no session begins any more
	sessions sync.WaitGroup
}

// offer is a request that waits for its client.
type offer struct {
	kind    string // first part of the URL's path
	token   string
	size    int // bytes
	expires time.Time
	serve   func(*session)
}

// ListenStreams listens on a loopback address; port 0 is any free one to which no
// NAT rule of this host has another way.
func ListenStreams(ctx context.Context, address string) (*Streaming, error) {
	at, err := netip.ParseAddrPort(address)
	if err == nil && !at.Addr().IsLoopback() {
		err = fmt.Errorf("%s is not a loopback address", at.Addr())
	}
	if err != nil {
		return nil, fmt.Errorf("listen for streaming: %w", err)
	}
	files, err := streamFiles()
	if err != nil {
		return nil, fmt.Errorf("listen for streaming: %w", err)
	}
	l, err := listenReached(ctx, at)
	if err != nil {
		return nil, fmt.Errorf("listen for streaming: %w", err)
	}
	return &Streaming{
		door: newDoor(l), files: files, now: time.Now, heartbeat: heartbeat, patience: requestTimeout, offers: map[string]*offer{},
	}, nil
}

// listenReached listens at an address. Port 0 becomes a port that proveReach finds
// to be reached; one that the operator has set may become so later, as url tells.
func listenReached(ctx context.Context, at netip.AddrPort) (net.Listener, error) {
	var config net.ListenConfig
	for try := 1; ; try++ {
		l, err := config.Listen(ctx, "tcp", at.String())
		if err != nil || at.Port() != 0 {
			return l, err
		}
		if err = proveReach(l.Addr()); err == nil {
			return l, nil
		}
		defer l.Close() // not before another is found: this one is not to be found again
		if try == listenTries {
			return nil, fmt.Errorf("connections to %s do not arrive: %w", l.Addr(), err)
		}
	}
}

// Address is where sessions are served: no pod may have it as a host port.
func (s *Streaming) Address() netip.AddrPort { return addrPort(s.door.Addr()) }

// Close is for a Streaming that is not served.
func (s *Streaming) Close() error { return s.door.Close() }

// serve serves until ctx ends, then ends all sessions and waits for them.
func (s *Streaming) serve(ctx context.Context) error {
	base, end := context.WithCancelCause(context.WithoutCancel(ctx))
	defer end(nil)
	server := &http.Server{
		Handler:        s,
		ReadTimeout:    s.patience, // ends when a session takes the connection over
		WriteTimeout:   s.patience,
		MaxHeaderBytes: maxHeader,
		BaseContext:    func(net.Listener) context.Context { return base },
		ConnContext:    withConn,
		ConnState:      s.door.changed,
	}
	server.SetKeepAlivesEnabled(false) // one connection, one session
	stop := context.AfterFunc(ctx, func() {
		end(errStopping)
		server.Close()
	})
	defer stop()
	err := server.Serve(s.door)
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	if ctx.Err() == nil {
		return fmt.Errorf("serve streaming on %s: %w", s.door.Addr(), err)
	}
	s.sessions.Wait()
	return nil
}

// url offers a session of a request and returns the URL for it.
func (s *Streaming) url(kind string, req proto.Message, serve func(*session)) (string, error) {
	if err := proveReach(s.door.Addr()); err != nil {
		return "", status.Errorf(codes.Unavailable, "connections to %s, where Berth serves streams, do not arrive (%v): remove the NAT rule that redirects this port, or set another streaming.address and restart berthd", s.door.Addr(), err)
	}
	o := &offer{kind: kind, token: rand.Text(), size: proto.Size(req), serve: serve}
	s.mu.Lock()
	defer s.mu.Unlock()
	o.expires = s.now().Add(tokenLife)
	for len(s.queue) > 0 && s.expiredLocked(s.queue[0]) {
		s.withdrawLocked(s.queue[0])
		s.queue = s.queue[1:]
	}
	if len(s.offers) >= maxOffers || s.offered+o.size > maxOffered {
		return "", status.Errorf(codes.ResourceExhausted, "%d streaming requests wait for their clients already; connect to their URLs, or wait a minute", len(s.offers))
	}
	s.offers[o.token] = o
	s.queue = append(s.queue, o)
	s.offered += o.size
	return fmt.Sprintf("http://%s/%s/%s", s.door.Addr(), kind, o.token), nil
}

// expiredLocked also tells of one whose token was used.
func (s *Streaming) expiredLocked(o *offer) bool {
	return s.offers[o.token] != o || !s.now().Before(o.expires)
}

func (s *Streaming) withdrawLocked(o *offer) {
	if s.offers[o.token] == o {
		delete(s.offers, o.token)
		s.offered -= o.size
		o.serve = nil // the queue may hold o for some time
	}
}

// begin uses up a token. What it returns serves the session, which is then to be
// counted down in s.sessions; nil if there is no such offer.
func (s *Streaming) begin(kind, token string) func(*session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.offers[token]
	if o == nil || o.kind != kind || s.closed {
		return nil
	}
	expired, serve := s.expiredLocked(o), o.serve
	s.withdrawLocked(o)
	if expired {
		return nil
	}
	s.sessions.Add(1)
	return serve
}

// ServeHTTP serves one session.
func (s *Streaming) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	kind, token, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	if !s.files.take(sessionFiles) {
		// The token stays good: the client may try again.
		http.Error(w, "too many streaming sessions are open on this node: end some", http.StatusServiceUnavailable)
		return
	}
	defer s.files.give(sessionFiles)
	serve := s.begin(kind, token)
	if serve == nil {
		http.Error(w, "this URL is not valid any more: it is for one session, within a minute", http.StatusNotFound)
		return
	}
	defer s.sessions.Done()
	c, err := newSession(w, r, kind, s)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer c.end()
	serve(c)
}

// streamsRequest is an ExecRequest or an AttachRequest.
type streamsRequest interface {
	GetStdin() bool
	GetStdout() bool
	GetStderr() bool
	GetTty() bool
}

func checkStreams(req streamsRequest) error {
	switch {
	case req.GetTty() && req.GetStderr():
		return &sandbox.InvalidError{Field: "stderr", Reason: "cannot be had apart with tty: a terminal has one output"}
	case !req.GetStdin() && !req.GetStdout() && !req.GetStderr():
		return &sandbox.InvalidError{Field: "stdin, stdout, stderr", Reason: "one of them is required"}
	}
	return nil
}

// Exec prepares a command in a running container and returns the URL where a
// client starts it and gets its streams and exit code. When the client hangs up
// the command is killed with its descendants.
func (s *Server) Exec(_ context.Context, req *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	if err := checkStreams(req); err != nil {
		return nil, err
	}
	ctr, err := s.container(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	if err := ctr.MayExec(req.GetCmd()); err != nil {
		return nil, err
	}
	url, err := s.Streams.url("exec", req, func(c *session) { c.exec(ctr, req) })
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ExecResponse{Url: url}, nil
}

// Attach returns the URL where a client gets the streams of a running
// container's own process. tty must be as in the container's config.
func (s *Server) Attach(_ context.Context, req *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	if err := checkStreams(req); err != nil {
		return nil, err
	}
	ctr, err := s.container(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	if err := ctr.MayAttach(req.GetTty(), req.GetStdin()); err != nil {
		return nil, err
	}
	url, err := s.Streams.url("attach", req, func(c *session) { c.attach(ctr, req) })
	if err != nil {
		return nil, err
	}
	return &runtimeapi.AttachResponse{Url: url}, nil
}

// PortForward returns the URL where a client gets connections to TCP ports of a
// READY pod's loopback. SPDY clients name the port with each connection;
// WebSocket clients get those of the request.
func (s *Server) PortForward(_ context.Context, req *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	if err := checkPorts(req.GetPort()); err != nil {
		return nil, err
	}
	pod, err := s.pod(req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	if err := pod.MayDial(); err != nil {
		return nil, err
	}
	url, err := s.Streams.url("portforward", req, func(c *session) { c.portForward(pod, req.GetPort()) })
	if err != nil {
		return nil, err
	}
	return &runtimeapi.PortForwardResponse{Url: url}, nil
}
