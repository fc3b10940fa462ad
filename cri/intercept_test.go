package cri

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"berth/sandbox"
	"berth/test/expect"
)

func TestPanicEndsOnlyItsCall(t *testing.T) {
	logged := expect.Log(t)
	info := &grpc.UnaryServerInfo{FullMethod: "/runtime.v1.RuntimeService/Status"}
	resp, err := interceptUnary(context.Background(), nil, info, func(context.Context, any) (any, error) {
		panic("a bug")
	})
	if status.Code(err) != codes.Internal || resp != nil {
		t.Errorf("answered %v, %v", resp, err)
	}
	klog.Flush()
	for _, want := range []string{"a bug", "TestPanicEndsOnlyItsCall"} {
		if !strings.Contains(logged.String(), want) {
			t.Errorf("the log lacks %q:\n%s", want, logged)
		}
	}
}

func TestAnswerWithAnErrorIsDropped(t *testing.T) {
	info := &grpc.UnaryServerInfo{FullMethod: "/m"}
	resp, err := interceptUnary(context.Background(), nil, info, func(context.Context, any) (any, error) {
		return "half", context.Canceled
	})
	if resp != nil || status.Code(err) != codes.Canceled {
		t.Errorf("answered %v, %v", resp, err)
	}
}

// Requests carry passwords and environments: the log names only the object.
func TestAccessLogHoldsNoSecrets(t *testing.T) {
	const secret = "s3cr3t"
	for _, test := range []struct {
		req  any
		want []string
	}{
		{&runtimeapi.PullImageRequest{
			Image: &runtimeapi.ImageSpec{Image: "busybox:1"},
			Auth: &runtimeapi.AuthConfig{Username: secret, Password: secret, Auth: secret, ServerAddress: secret,
				IdentityToken: secret, RegistryToken: secret},
			SandboxConfig: &runtimeapi.PodSandboxConfig{Annotations: map[string]string{"a": secret}},
		}, []string{`image="busybox:1"`}},
		{&runtimeapi.CreateContainerRequest{PodSandboxId: "p1", Config: &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: "web"},
			Envs:     []*runtimeapi.KeyValue{{Key: secret, Value: []byte(secret)}},
			Command:  []string{secret}, Args: []string{secret},
		}}, []string{`pod="p1"`, `name="web"`}},
		{&runtimeapi.RunPodSandboxRequest{Config: &runtimeapi.PodSandboxConfig{
			Metadata: &runtimeapi.PodSandboxMetadata{Name: "web", Namespace: "default"},
			Labels:   map[string]string{"l": secret},
		}}, []string{`name="web"`, `namespace="default"`}},
		{&runtimeapi.ExecSyncRequest{ContainerId: "c1", Cmd: []string{secret}}, []string{`container="c1"`}},
	} {
		for code, fail := range map[codes.Code]error{
			codes.OK: nil, codes.Canceled: context.Canceled, codes.Unknown: errors.New("broken"),
		} {
			logged := expect.Log(t)
			info := &grpc.UnaryServerInfo{FullMethod: "/runtime.v1.S/M"}
			interceptUnary(context.Background(), test.req, info, func(context.Context, any) (any, error) { return nil, fail })
			klog.Flush()
			for _, want := range append(test.want, `method="/runtime.v1.S/M"`, `code="`+code.String()+`"`) {
				if !strings.Contains(logged.String(), want) {
					t.Errorf("%T: the log lacks %s: %s", test.req, want, logged)
				}
			}
			if strings.Contains(logged.String(), secret) {
				t.Errorf("%T: the log holds a secret: %s", test.req, logged)
			}
		}
	}
}

// What an operation has reported is not reported again.
func TestFailureIsLoggedOnce(t *testing.T) {
	for _, test := range []struct {
		err  error
		want int
	}{
		{errors.New("broken"), 1},
		{fmt.Errorf("start container: %w", &sandbox.OperationError{Operation: "start", Err: errors.New("broken")}), 0},
	} {
		logged := expect.Log(t)
		info := &grpc.UnaryServerInfo{FullMethod: "/runtime.v1.S/M"}
		interceptUnary(context.Background(), nil, info, func(context.Context, any) (any, error) { return nil, test.err })
		klog.Flush()
		if n := strings.Count("\n"+logged.String(), "\nE"); n != test.want {
			t.Errorf("%v: %d errors in the log, want %d:\n%s", test.err, n, test.want, logged)
		}
	}
}
