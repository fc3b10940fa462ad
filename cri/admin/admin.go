package admin

import (
	"context"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Version of this build of Berth, a semantic version; the linker may set it.
var Version = "0.1.0"

// DefaultSocket is where the daemon listens unless it is told otherwise.
const DefaultSocket = "/run/berth/berth.sock"

// MaxMessage is the size in bytes of the largest message that is sent or
// received, of CRI as well. The kubelet's client has the same limit.
const MaxMessage = 16 << 20

// NoProgram is a detail (a google.protobuf.StringValue) of the error of a
// StartContainer whose program is not there. CRI has no code for that.
const NoProgram = "NoProgram"

const (
	serviceName = "berth.admin.v1.Admin"
	runPod      = "/" + serviceName + "/RunPod"
	pull        = "/" + serviceName + "/Pull"
)

// Server answers the service.
type Server interface {
	RunPod(context.Context, *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error)
	// Pull pulls an image, telling send how far it is, and last the image's id.
	// An error of send is returned.
	Pull(ctx context.Context, req *runtimeapi.PullImageRequest, send func(PullProgress) error) error
}

// Register makes s serve the calls of the service that r receives.
func Register(r grpc.ServiceRegistrar, s Server) {
	r.RegisterService(&service, s)
}

// RunPod makes a pod as RunPodSandbox does, on the built-in network if the
// operator has configured none. It returns the pod's id.
func RunPod(ctx context.Context, conn grpc.ClientConnInterface, req *runtimeapi.RunPodSandboxRequest) (id string, err error) {
	resp := &runtimeapi.RunPodSandboxResponse{}
	if err := conn.Invoke(ctx, runPod, req, resp); err != nil {
		return "", err
	}
	return resp.GetPodSandboxId(), nil
}

var service = grpc.ServiceDesc{
	ServiceName: serviceName,
	HandlerType: (*Server)(nil),
	Methods:     []grpc.MethodDesc{{MethodName: "RunPod", Handler: handleRunPod}},
	Streams:     []grpc.StreamDesc{pullStream},
}

// handleRunPod decodes one call, and makes it through the server's interceptor
// if it has one.
func handleRunPod(srv any, ctx context.Context, decode func(any) error, interceptor grpc.UnaryServerInterceptor) (any, error) {
	req := &runtimeapi.RunPodSandboxRequest{}
	if err := decode(req); err != nil {
		return nil, err
	}
	handle := func(ctx context.Context, req any) (any, error) {
		return srv.(Server).RunPod(ctx, req.(*runtimeapi.RunPodSandboxRequest))
	}
	if interceptor == nil {
		return handle(ctx, req)
	}
	return interceptor(ctx, req, &grpc.UnaryServerInfo{Server: srv, FullMethod: runPod}, handle)
}
