package cri

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"
)

// captureLog sends the log, all of it, to the returned buffer until the test
// ends. Flush before reading.
func captureLog(t *testing.T) *bytes.Buffer {
	t.Helper()
	state := klog.CaptureState()
	t.Cleanup(state.Restore)
	var flags flag.FlagSet
	klog.InitFlags(&flags)
	for name, value := range map[string]string{"v": "10", "logtostderr": "false", "alsologtostderr": "false", "stderrthreshold": "FATAL"} {
		if err := flags.Set(name, value); err != nil {
			t.Fatal(err)
		}
	}
	buf := &bytes.Buffer{}
	klog.SetOutput(buf)
	return buf
}

func TestPanicEndsOnlyItsCall(t *testing.T) {
	logged := captureLog(t)
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
			logged := captureLog(t)
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
