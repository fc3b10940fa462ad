package admin

import (
	"context"
	"net"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/test/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

// echo answers with the name of the pod it is asked for.
type echo struct{}

func (echo) RunPod(_ context.Context, req *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error) {
	name := req.GetConfig().GetMetadata().GetName()
	if name == "" {
		return nil, status.Error(codes.InvalidArgument, "no name")
	}
	return &runtimeapi.RunPodSandboxResponse{PodSandboxId: name}, nil
}

func (echo) Pull(_ context.Context, req *runtimeapi.PullImageRequest, send func(PullProgress) error) error {
	name := req.GetImage().GetImage()
	layer := LayerProgress{Digest: "sha256:1a", Phase: Downloading, Bytes: 3, Total: 5}
	if err := send(PullProgress{Layers: []LayerProgress{layer}}); err != nil || name == "" {
		return status.Error(codes.InvalidArgument, "no name")
	}
	return send(PullProgress{Image: name})
}

func connect(t *testing.T, options ...grpc.ServerOption) *grpc.ClientConn {
	t.Helper()
	g := grpc.NewServer(options...)
	Register(g, echo{})
	l := bufconn.Listen(1 << 20)
	served := make(chan error, 1)
	go func() { served <- g.Serve(l) }()
	t.Cleanup(func() {
		g.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	conn, err := grpc.NewClient("passthrough:admin", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func request(name string) *runtimeapi.RunPodSandboxRequest {
	return &runtimeapi.RunPodSandboxRequest{Config: &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: name},
	}}
}

func TestRunPod(t *testing.T) {
	conn := connect(t)
	if id, err := RunPod(context.Background(), conn, request("web")); id != "web" || err != nil {
		t.Errorf("answered %q, %v", id, err)
	}
	if id, err := RunPod(context.Background(), conn, request("")); id != "" || status.Code(err) != codes.InvalidArgument {
		t.Errorf("answered %q, %v", id, err)
	}
}

// The hand-written handler passes through the server's interceptor, where
// errors get their codes.
func TestRunPodIsIntercepted(t *testing.T) {
	seen := ""
	conn := connect(t, grpc.UnaryInterceptor(
		func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
			seen = info.FullMethod
			return handler(ctx, req)
		}))
	if id, err := RunPod(context.Background(), conn, request("web")); id != "web" || err != nil {
		t.Errorf("answered %q, %v", id, err)
	}
	if seen != "/berth.admin.v1.Admin/RunPod" {
		t.Errorf("the interceptor saw %q", seen)
	}
}

func TestPull(t *testing.T) {
	seen := ""
	conn := connect(t, grpc.StreamInterceptor(
		func(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
			seen = info.FullMethod
			return handler(srv, stream)
		}))
	var got []PullProgress
	pull := func(name string) (string, error) {
		got = nil
		req := &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: name}}
		return Pull(context.Background(), conn, req, func(p PullProgress) { got = append(got, p) })
	}
	if id, err := pull("web"); id != "web" || err != nil {
		t.Errorf("answered %q, %v", id, err)
	}
	want := LayerProgress{Digest: "sha256:1a", Phase: Downloading, Bytes: 3, Total: 5}
	if len(got) != 2 || len(got[0].Layers) != 1 || got[0].Layers[0] != want || got[0].Image != "" || got[1].Image != "web" {
		t.Errorf("showed %+v", got)
	}
	if seen != "/berth.admin.v1.Admin/Pull" {
		t.Errorf("the interceptor saw %q", seen)
	}
	if id, err := pull(""); id != "" || status.Code(err) != codes.InvalidArgument || len(got) != 1 {
		t.Errorf("answered %q, %v after %+v", id, err, got)
	}
}
