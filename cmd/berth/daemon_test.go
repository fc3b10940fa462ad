package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"

	"berth/cri/admin"
)

// daemon plays berthd: real gRPC on a real socket, real streaming sessions, real
// log files; its containers are functions.
type daemon struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	runtimeapi.UnimplementedImageServiceServer

	socket string
	main   func(p *played) int                  // what every container does
	exec   func(context.Context, process) error // and every command in one

	streams streaming.Server
	running sync.WaitGroup // containers

	mu         sync.Mutex
	pods       []*runtimeapi.PodSandbox
	containers []*played
	images     []*runtimeapi.Image
}

// played is a container.
type played struct {
	id, pod string
	config  *runtimeapi.ContainerConfig
	logPath string

	in      *io.PipeReader // what the container reads
	typed   *io.PipeWriter
	sizes   chan remotecommand.TerminalSize
	stopped chan int64    // timeouts of the calls of StopContainer
	ended   chan struct{} // it has

	mu       sync.Mutex
	state    runtimeapi.ContainerState
	code     int32
	attached []io.Writer
}

// Write is the container's output: a log, and whoever is attached.
func (p *played) Write(text []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, w := range p.attached {
		w.Write(text)
	}
	log, err := os.OpenFile(p.logPath, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return 0, err
	}
	defer log.Close()
	for line := range bytes.Lines(text) {
		content, whole := bytes.CutSuffix(line, []byte{'\n'})
		tag := map[bool]string{true: "F", false: "P"}[whole]
		if _, err := fmt.Fprintf(log, "%s stdout %s %s\n", time.Now().UTC().Format(time.RFC3339Nano), tag, content); err != nil {
			return 0, err
		}
	}
	return len(text), nil
}

// startDaemon serves d until the test ends, and keeps logs in a directory of the
// test.
func startDaemon(t *testing.T, d *daemon) *daemon {
	t.Helper()
	dir, err := os.MkdirTemp("", "berth") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	before := podLogs
	podLogs = filepath.Join(dir, "logs")
	d.socket = filepath.Join(dir, "sock")
	d.streams = serveStreams(t, d.session)
	l, err := net.Listen("unix", d.socket)
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	runtimeapi.RegisterRuntimeServiceServer(g, d)
	runtimeapi.RegisterImageServiceServer(g, d)
	admin.Register(g, d)
	served := make(chan error, 1)
	go func() { served <- g.Serve(l) }()
	t.Cleanup(func() {
		for _, c := range d.containers {
			c.in.Close()
			close(c.stopped)
		}
		d.running.Wait()
		g.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
		podLogs = before
		os.RemoveAll(dir)
	})
	return d
}

// berth runs a command line against d.
func (d *daemon) berth(t *testing.T, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	return execute(t, append([]string{"--socket", d.socket}, args...)...)
}

func (d *daemon) container(id string) (*played, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, c := range d.containers {
		if c.id == id {
			return c, nil
		}
	}
	return nil, status.Errorf(codes.NotFound, "container %s: not found", id)
}

func (d *daemon) RunPod(_ context.Context, req *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	id := fmt.Sprintf("%064x", 0xa0+len(d.pods))
	c := req.GetConfig()
	d.pods = append(d.pods, &runtimeapi.PodSandbox{Id: id, Metadata: c.GetMetadata(), Labels: c.GetLabels(), Annotations: c.GetAnnotations(), CreatedAt: 1})
	return &runtimeapi.RunPodSandboxResponse{PodSandboxId: id}, nil
}

func (d *daemon) CreateContainer(_ context.Context, req *runtimeapi.CreateContainerRequest) (*runtimeapi.CreateContainerResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := &played{
		id: fmt.Sprintf("%064x", 0xc0+len(d.containers)), pod: req.GetPodSandboxId(), config: req.GetConfig(),
		logPath: filepath.Join(req.GetSandboxConfig().GetLogDirectory(), req.GetConfig().GetLogPath()),
		sizes:   make(chan remotecommand.TerminalSize, 16), stopped: make(chan int64, 4), ended: make(chan struct{}),
	}
	c.in, c.typed = io.Pipe()
	d.containers = append(d.containers, c)
	return &runtimeapi.CreateContainerResponse{ContainerId: c.id}, nil
}

func (d *daemon) StartContainer(_ context.Context, req *runtimeapi.StartContainerRequest) (*runtimeapi.StartContainerResponse, error) {
	c, err := d.container(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	if slices.Contains(c.config.GetArgs(), "frobnicate") {
		return nil, status.Error(codes.Unknown, "no such program: frobnicate")
	}
	c.mu.Lock()
	c.state = runtimeapi.ContainerState_CONTAINER_RUNNING
	c.mu.Unlock()
	d.running.Go(func() {
		code := d.main(c)
		c.in.Close()
		c.mu.Lock()
		c.state, c.code = runtimeapi.ContainerState_CONTAINER_EXITED, int32(code)
		c.mu.Unlock()
		close(c.ended)
	})
	return &runtimeapi.StartContainerResponse{}, nil
}

func (d *daemon) StopContainer(_ context.Context, req *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	c, err := d.container(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	c.stopped <- req.GetTimeout()
	<-c.ended
	return &runtimeapi.StopContainerResponse{}, nil
}

func (d *daemon) StopPodSandbox(context.Context, *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error) {
	return &runtimeapi.StopPodSandboxResponse{}, nil
}

func (d *daemon) RemovePodSandbox(_ context.Context, req *runtimeapi.RemovePodSandboxRequest) (*runtimeapi.RemovePodSandboxResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.pods = slices.DeleteFunc(d.pods, func(p *runtimeapi.PodSandbox) bool { return p.Id == req.GetPodSandboxId() })
	return &runtimeapi.RemovePodSandboxResponse{}, nil
}

func (d *daemon) ListPodSandbox(context.Context, *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return &runtimeapi.ListPodSandboxResponse{Items: slices.Clone(d.pods)}, nil
}

func (d *daemon) ListContainers(context.Context, *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	resp := &runtimeapi.ListContainersResponse{}
	for _, c := range d.containers {
		c.mu.Lock()
		resp.Containers = append(resp.Containers, &runtimeapi.Container{
			Id: c.id, PodSandboxId: c.pod, Metadata: c.config.GetMetadata(), Image: c.config.GetImage(), ImageId: imageID,
			State: c.state, Annotations: c.config.GetAnnotations(), CreatedAt: 1,
		})
		c.mu.Unlock()
	}
	return resp, nil
}

func (d *daemon) PodSandboxStatus(_ context.Context, req *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	resp := &runtimeapi.PodSandboxStatusResponse{
		Status: &runtimeapi.PodSandboxStatus{Id: req.GetPodSandboxId(), CreatedAt: 1, Network: &runtimeapi.PodSandboxNetworkStatus{Ip: "10.88.0.2"}},
	}
	if req.GetVerbose() {
		resp.Info = map[string]string{"info": `{"pid":42}`}
	}
	return resp, nil
}

func (d *daemon) ContainerStatus(_ context.Context, req *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	c, err := d.container(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	resp := &runtimeapi.ContainerStatusResponse{Status: &runtimeapi.ContainerStatus{
		Id: c.id, Metadata: c.config.GetMetadata(), State: c.state, ExitCode: c.code, LogPath: c.logPath, CreatedAt: 1,
	}}
	if req.GetVerbose() {
		resp.Info = map[string]string{"info": `{"pid":42}`}
	}
	return resp, nil
}

func (d *daemon) Exec(_ context.Context, req *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	return d.streams.GetExec(req)
}

func (d *daemon) Attach(_ context.Context, req *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	return d.streams.GetAttach(req)
}

// session is the other end of an exec or attach.
func (d *daemon) session(ctx context.Context, p process) error {
	if p.cmd != nil {
		return d.exec(ctx, p)
	}
	c, err := d.container(p.container)
	if err != nil {
		return err
	}
	if p.out != nil {
		c.mu.Lock()
		c.attached = append(c.attached, p.out)
		c.mu.Unlock()
	}
	if p.in != nil {
		go func() { // ends with the session
			io.Copy(c.typed, p.in)
			if c.config.GetStdinOnce() {
				c.typed.Close()
			}
		}()
	}
	for {
		select {
		case size, ok := <-p.resize:
			if !ok {
				p.resize = nil
				continue
			}
			c.sizes <- size
		case <-c.ended:
			return nil
		}
	}
}

const imageID = "sha256:1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a"

func (d *daemon) ListImages(context.Context, *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return &runtimeapi.ListImagesResponse{Images: slices.Clone(d.images)}, nil
}

func (d *daemon) ImageStatus(_ context.Context, req *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, img := range d.images {
		if ref := req.GetImage().GetImage(); ref == img.GetId() || slices.Contains(img.GetRepoTags(), ref) {
			info, _ := json.Marshal(map[string]any{"imageSpec": map[string]any{"created": noon}, "pulled": noon})
			return &runtimeapi.ImageStatusResponse{Image: img, Info: map[string]string{"info": string(info)}}, nil
		}
	}
	return &runtimeapi.ImageStatusResponse{}, nil
}

func (d *daemon) RemoveImage(_ context.Context, req *runtimeapi.RemoveImageRequest) (*runtimeapi.RemoveImageResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.images = slices.DeleteFunc(d.images, func(img *runtimeapi.Image) bool { return img.GetId() == req.GetImage().GetImage() })
	return &runtimeapi.RemoveImageResponse{}, nil
}

// Pull makes every image but those called none.
func (d *daemon) Pull(_ context.Context, req *runtimeapi.PullImageRequest, send func(admin.PullProgress) error) error {
	ref := req.GetImage().GetImage()
	if strings.HasPrefix(ref, "none") {
		return status.Errorf(codes.NotFound, "pull %s: image not found", ref)
	}
	layer := admin.LayerProgress{Digest: "sha256:" + strings.Repeat("7e", 32), Phase: admin.Downloading, Bytes: 1 << 20, Total: 4 << 20}
	if err := send(admin.PullProgress{Layers: []admin.LayerProgress{layer}}); err != nil {
		return err
	}
	d.mu.Lock()
	d.images = []*runtimeapi.Image{{Id: imageID, RepoTags: []string{ref}, Size: 9 << 20}}
	d.mu.Unlock()
	layer.Phase, layer.Bytes = admin.Done, layer.Total
	return send(admin.PullProgress{Layers: []admin.LayerProgress{layer}, Image: imageID})
}
