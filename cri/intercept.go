package cri

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"berth/sandbox"
)

// callLevel is the klog verbosity of the access log.
const callLevel = 4

func interceptUnary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	var resp any
	err := intercept(ctx, info.FullMethod, subject(req), func() (err error) {
		resp, err = handler(ctx, req)
		return err
	})
	if err != nil {
		return nil, err
	}
	return resp, nil
}

func interceptStream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	return intercept(stream.Context(), info.FullMethod, nil, func() error { return handler(srv, stream) })
}

// intercept makes one call: what it returns is nil or a gRPC status, whatever
// the call does.
func intercept(ctx context.Context, method string, subject []any, call func() error) error {
	began := time.Now()
	cause := guard(method, call)
	err := toStatus(ctx, cause)
	operation := (*sandbox.OperationError)(nil)
	logCall(method, subject, time.Since(began), err, errors.As(cause, &operation))
	return err
}

// guard turns a panic of call into an error: one bad request must not end the
// daemon that serves all others.
func guard(method string, call func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			klog.ErrorS(fmt.Errorf("panic: %v", p), "CRI call panicked", "method", method, "stack", string(debug.Stack()))
			err = status.Errorf(codes.Internal, "%s panicked: the log of berthd has the stack", method)
		}
	}()
	return call()
}

// logCall writes the access log. A failure that no client asks for is logged
// always, unless it is reported, with more detail, by the operation that failed;
// asking for what is gone is the daily business of a kubelet.
func logCall(method string, subject []any, took time.Duration, err error, reported bool) {
	code := status.Code(err)
	fields := append([]any{"method", method, "took", took, "code", code}, subject...)
	normal := []codes.Code{codes.OK, codes.NotFound, codes.Canceled, codes.Unimplemented}
	if reported || slices.Contains(normal, code) {
		klog.V(callLevel).InfoS("CRI call", fields...)
		return
	}
	klog.ErrorS(err, "CRI call", fields...)
}

// subject names what a request is about, as key and value for the log. Nothing
// else of a request is ever logged: requests hold credentials and environments.
func subject(req any) []any {
	var fields []any
	add := func(key, value string) {
		if value != "" {
			fields = append(fields, key, value)
		}
	}
	if r, ok := req.(interface{ GetPodSandboxId() string }); ok {
		add("pod", r.GetPodSandboxId())
	}
	if r, ok := req.(interface{ GetContainerId() string }); ok {
		add("container", r.GetContainerId())
	}
	if r, ok := req.(interface{ GetImage() *runtimeapi.ImageSpec }); ok {
		add("image", r.GetImage().GetImage())
	}
	switch r := req.(type) {
	case *runtimeapi.RunPodSandboxRequest:
		m := r.GetConfig().GetMetadata()
		add("namespace", m.GetNamespace())
		add("name", m.GetName())
	case *runtimeapi.CreateContainerRequest:
		add("name", r.GetConfig().GetMetadata().GetName())
	}
	return fields
}
