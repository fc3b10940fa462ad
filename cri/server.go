package cri

import (
	"context"
	"fmt"
	"net"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/cri/admin"
	"berth/image"
	"berth/sandbox"
)

// stopGrace is how long a stopping server waits for calls that have begun. The
// work of a longer call goes on without its client: see package sandbox.
const stopGrace = 10 * time.Second

// Checker says whether a part of the node can be used.
type Checker interface {
	// Status returns nil if it can, else the reason in a sentence for the
	// node's operator. It is asked every 5 seconds and answers from memory or
	// from a local file.
	Status(ctx context.Context) error
}

// Server serves CRI v1 and the admin service. Its fields are set once, before
// Serve; it is safe for concurrent use.
type Server struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	runtimeapi.UnimplementedImageServiceServer

	Pods    *sandbox.Pods
	Images  *image.Store
	Network Checker                  // condition NetworkReady
	Runtime Checker                  // condition RuntimeReady; nil: always ready
	Info    func() map[string]string // what a verbose Status shows, values in JSON
	Streams *Streaming               // sessions of Exec, Attach and PortForward
}

// Serve answers on l, and streaming sessions, until ctx ends, then lets the calls
// that have begun finish for a while and ends the sessions. It closes l and
// Streams.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	all, ctx := errgroup.WithContext(ctx)
	all.Go(func() error { return s.serveCalls(ctx, l) })
	all.Go(func() error { return s.Streams.serve(ctx) })
	return all.Wait()
}

func (s *Server) serveCalls(ctx context.Context, l net.Listener) error {
	g := s.grpcServer()
	served := make(chan error, 1)
	go func() { served <- g.Serve(l) }()

	select {
	case err := <-served:
		return fmt.Errorf("serve CRI on %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	stop(g)
	<-served
	return nil
}

func (s *Server) grpcServer() *grpc.Server {
	g := grpc.NewServer(
		grpc.MaxRecvMsgSize(admin.MaxMessage),
		grpc.MaxSendMsgSize(admin.MaxMessage),
		// A client that died without closing its end is noticed, and one that
		// pings more often than needed is let be: the socket is local.
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 2 * time.Minute, Timeout: 20 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.UnaryInterceptor(interceptUnary),
		grpc.StreamInterceptor(interceptStream),
	)
	runtimeapi.RegisterRuntimeServiceServer(g, s)
	runtimeapi.RegisterImageServiceServer(g, s)
	admin.Register(g, s)
	return g
}

// stop ends g: gracefully if its calls end within stopGrace.
func stop(g *grpc.Server) {
	stopped := make(chan struct{})
	go func() {
		g.GracefulStop()
		close(stopped)
	}()
	timer := time.NewTimer(stopGrace)
	defer timer.Stop()
	select {
	case <-stopped:
	case <-timer.C:
		g.Stop()
		<-stopped
	}
}
