package expect

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Code fails t unless err has the code and its text holds every part.
func Code(t testing.TB, what string, err error, code codes.Code, parts ...string) {
	t.Helper()
	s := status.Convert(err)
	if s.Code() != code {
		t.Errorf("%s: code %v (%s), want %v", what, s.Code(), s.Message(), code)
		return
	}
	for _, part := range parts {
		if !strings.Contains(s.Message(), part) {
			t.Errorf("%s: %q does not say %q", what, s.Message(), part)
		}
	}
}

// Documented fails t unless cmd, each command below it and each of their flags
// has help.
func Documented(t testing.TB, cmd *cobra.Command) {
	t.Helper()
	if cmd.Short == "" {
		t.Errorf("%s has no help", cmd.CommandPath())
	}
	cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
		if f.Usage == "" {
			t.Errorf("%s --%s has no help", cmd.CommandPath(), f.Name)
		}
	})
	for _, below := range cmd.Commands() {
		Documented(t, below)
	}
}

// Calls makes every call that names a pod or a container with this id, and returns
// by its name what each has said. config is of the container to be created.
func Calls(ctx context.Context, n runtimeapi.RuntimeServiceClient, id string, config *runtimeapi.ContainerConfig) map[string]error {
	errOf := func(_ any, err error) error { return err }
	return map[string]error{
		"StopPodSandbox":           errOf(n.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: id})),
		"RemovePodSandbox":         errOf(n.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id})),
		"StopContainer":            errOf(n.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: id})),
		"RemoveContainer":          errOf(n.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: id})),
		"PodSandboxStatus":         errOf(n.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id})),
		"ContainerStatus":          errOf(n.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id})),
		"CreateContainer":          errOf(n.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: id, Config: config})),
		"StartContainer":           errOf(n.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id})),
		"ExecSync":                 errOf(n.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}})),
		"UpdateContainerResources": errOf(n.UpdateContainerResources(ctx, &runtimeapi.UpdateContainerResourcesRequest{ContainerId: id})),

		"ReopenContainerLog": errOf(n.ReopenContainerLog(ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: id})),
	}
}

// NoPods stops and removes whatever pods there are.
func NoPods(ctx context.Context, runtime runtimeapi.RuntimeServiceClient) error {
	pods, err := runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return err
	}
	for _, p := range pods.GetItems() {
		if _, err := runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.GetId()}); err != nil {
			return err
		}
		if _, err := runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.GetId()}); err != nil {
			return err
		}
	}
	return nil
}

// Mounts are the mount points of this mount namespace, in the order in which they
// were made.
func Mounts(t testing.TB) (points []string) {
	t.Helper()
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(info)) {
		points = append(points, strings.Fields(line)[4])
	}
	return points
}

// Keeper is the pid of who listens on the keeper's socket in a run directory, 0
// without one.
func Keeper(t testing.TB, run string) int {
	t.Helper()
	conn, err := net.Dial("unixpacket", filepath.Join(run, "keeper.sock"))
	if err != nil {
		return 0
	}
	defer conn.Close()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var peer *syscall.Ucred
	var peerErr error
	err = raw.Control(func(fd uintptr) {
		peer, peerErr = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	})
	if err := errors.Join(err, peerErr); err != nil {
		t.Fatal(err)
	}
	return int(peer.Pid)
}
