package main

import (
	"context"
	"encoding/json"
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
	var f format
	cmd := &cobra.Command{
		Use:     "status",
		Short:   "Show whether this node can run pods, and what is on it",
		Long:    "Show whether this node can run pods, and what is on it. The exit code is 1 if it cannot.",
		Example: "  berth status\n  berth status -o json | jq .ready",
		Args:    usage(cobra.NoArgs),
		RunE: withClient(func(ctx context.Context, cmd *cobra.Command, c *client, _ []string) error {
			return c.showStatus(ctx, cmd.OutOrStdout(), f)
		}),
	}
	addFormat(cmd, &f)
	return cmd
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

func (c *client) showStatus(ctx context.Context, w io.Writer, f format) error {
	s, err := c.nodeStatus(ctx)
	if err != nil {
		return err
	}
	r := s.report()
	if f == formatJSON {
		err = writeJSON(w, r)
	} else {
		err = r.write(w)
	}
	if err == nil && !r.Ready {
		err = errNotReady
	}
	return err
}

func (c *client) nodeStatus(ctx context.Context) (*nodeStatus, error) {
	var s nodeStatus
	var err error
	if s.version, err = c.runtime.Version(ctx, &runtimeapi.VersionRequest{}); err != nil {
		return nil, err
	}
	if s.status, err = c.runtime.Status(ctx, &runtimeapi.StatusRequest{Verbose: true}); err != nil {
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

func (s *nodeStatus) report() statusReport {
	r := statusReport{
		Version: s.version.GetRuntimeVersion(), Ready: true, Conditions: []conditionReport{}, Handlers: []string{}, Stores: []storeReport{},
		Pods: podsReport{Total: len(s.pods)}, Containers: containersReport{Total: len(s.containers)}, Images: len(s.images),
	}
	for _, c := range s.status.GetStatus().GetConditions() {
		r.Conditions = append(r.Conditions, conditionReport{c.GetType(), c.GetStatus(), c.GetReason(), c.GetMessage()})
		r.Ready = r.Ready && c.GetStatus()
	}
	r.OpenFiles = s.openFiles()
	for _, h := range s.status.GetRuntimeHandlers() {
		if h.GetName() != "" {
			r.Handlers = append(r.Handlers, h.GetName())
		}
	}
	for _, p := range s.pods {
		if p.GetState() == runtimeapi.PodSandboxState_SANDBOX_READY {
			r.Pods.Ready++
		}
	}
	for _, c := range s.containers {
		if c.GetState() == runtimeapi.ContainerState_CONTAINER_RUNNING {
			r.Containers.Running++
		}
	}
	for _, fs := range s.fs.GetImageFilesystems() {
		r.Stores = append(r.Stores, storeReport{fs.GetFsId().GetMountpoint(), fs.GetUsedBytes().GetValue()})
	}
	return r
}

// openFiles are what a container may have and what the configuration asks for.
func (s *nodeStatus) openFiles() (r limitReport) {
	var limits struct{ Nofile uint64 }
	var config struct{ Container struct{ Nofile uint64 } }
	info := s.status.GetInfo()
	// A berthd of another version may tell neither.
	_ = json.Unmarshal([]byte(info["limits"]), &limits)
	_ = json.Unmarshal([]byte(info["config"]), &config)
	return limitReport{Effective: limits.Nofile, Configured: config.Container.Nofile}
}

func (r statusReport) write(w io.Writer) error {
	t := newTable(w, true)
	t.row("version:", r.Version)
	for _, c := range r.Conditions {
		name := strings.ToLower(strings.TrimSuffix(c.Type, "Ready")) + ":"
		if c.Ready {
			t.row(name, "ready")
		} else {
			t.row(name, "not ready: "+c.Message)
		}
	}
	t.row("handlers:", strings.Join(r.Handlers, ", "))
	if l := r.OpenFiles; l.Effective < l.Configured {
		t.row("open files:", fmt.Sprintf("%d, not the %d of container.nofile: raise LimitNOFILE= of berthd's unit, or fs.nr_open", l.Effective, l.Configured))
	} else {
		t.row("open files:", fmt.Sprint(l.Effective))
	}
	t.row("pods:", fmt.Sprintf("%d, %d ready", r.Pods.Total, r.Pods.Ready))
	t.row("containers:", fmt.Sprintf("%d, %d running", r.Containers.Total, r.Containers.Running))
	t.row("images:", fmt.Sprint(r.Images))
	for _, store := range r.Stores {
		t.row("store:", fmt.Sprintf("%s in %s", size(store.Used), store.Path))
	}
	return t.flush()
}
