package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// errNotReady makes `berth status` end with 1; the reason is in its output.
var errNotReady = errors.New("this node cannot run pods yet: see above")

func statusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show whether this node can run pods, and what is on it",
		Long:  "Show whether this node can run pods, and what is on it. The exit code is 1 if it cannot.",
		Args:  usage(cobra.NoArgs),
		RunE:  withClient(showStatus),
	}
}

// nodeStatus is what `berth status` shows.
type nodeStatus struct {
	version    *runtimeapi.VersionResponse
	status     *runtimeapi.StatusResponse
	pods       []*runtimeapi.PodSandbox
	containers []*runtimeapi.Container
	images     []*runtimeapi.Image
	fs         *runtimeapi.ImageFsInfoResponse
}

func showStatus(ctx context.Context, cmd *cobra.Command, c *client, _ []string) error {
	s, err := c.nodeStatus(ctx)
	if err != nil {
		return err
	}
	s.write(cmd.OutOrStdout())
	for _, condition := range s.status.GetStatus().GetConditions() {
		if !condition.GetStatus() {
			return errNotReady
		}
	}
	return nil
}

func (c *client) nodeStatus(ctx context.Context) (*nodeStatus, error) {
	var s nodeStatus
	var err error
	if s.version, err = c.runtime.Version(ctx, &runtimeapi.VersionRequest{}); err != nil {
		return nil, err
	}
	if s.status, err = c.runtime.Status(ctx, &runtimeapi.StatusRequest{}); err != nil {
		return nil, err
	}
	pods, err := c.runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return nil, err
	}
	containers, err := c.runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return nil, err
	}
	images, err := c.images.ListImages(ctx, &runtimeapi.ListImagesRequest{})
	if err != nil {
		return nil, err
	}
	if s.fs, err = c.images.ImageFsInfo(ctx, &runtimeapi.ImageFsInfoRequest{}); err != nil {
		return nil, err
	}
	s.pods, s.containers, s.images = pods.GetItems(), containers.GetContainers(), images.GetImages()
	return &s, nil
}

func (s *nodeStatus) write(w io.Writer) {
	t := newTable(w)
	t.row("version:", s.version.GetRuntimeVersion())
	for _, condition := range s.status.GetStatus().GetConditions() {
		name := strings.ToLower(strings.TrimSuffix(condition.GetType(), "Ready")) + ":"
		if condition.GetStatus() {
			t.row(name, "ready")
		} else {
			t.row(name, "not ready: "+condition.GetMessage())
		}
	}
	var handlers []string
	for _, h := range s.status.GetRuntimeHandlers() {
		if h.GetName() != "" {
			handlers = append(handlers, h.GetName())
		}
	}
	t.row("handlers:", strings.Join(handlers, ", "))
	ready, running := 0, 0
	for _, p := range s.pods {
		if p.GetState() == runtimeapi.PodSandboxState_SANDBOX_READY {
			ready++
		}
	}
	for _, c := range s.containers {
		if c.GetState() == runtimeapi.ContainerState_CONTAINER_RUNNING {
			running++
		}
	}
	t.row("pods:", fmt.Sprintf("%d, %d ready", len(s.pods), ready))
	t.row("containers:", fmt.Sprintf("%d, %d running", len(s.containers), running))
	t.row("images:", fmt.Sprint(len(s.images)))
	for _, fs := range s.fs.GetImageFilesystems() {
		t.row("store:", fmt.Sprintf("%s in %s", size(fs.GetUsedBytes().GetValue()), fs.GetFsId().GetMountpoint()))
	}
	t.flush()
}
