package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func psCommand() *cobra.Command {
	var all, quiet bool
	cmd := &cobra.Command{
		Use:   "ps",
		Short: "List containers",
		Args:  usage(cobra.NoArgs),
		RunE: withClient(func(ctx context.Context, cmd *cobra.Command, c *client, _ []string) error {
			lines, err := c.ps(ctx, all)
			if err != nil {
				return err
			}
			writePs(cmd.OutOrStdout(), time.Now(), lines, quiet)
			return nil
		}),
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "show those that do not run as well")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "show the ids only")
	return cmd
}

// psLine is an entry with what the lists do not tell.
type psLine struct {
	entry
	ip       string
	exitCode int32
}

func (c *client) ps(ctx context.Context, all bool) ([]psLine, error) {
	entries, err := c.entries(ctx)
	if err != nil {
		return nil, err
	}
	var lines []psLine
	for _, e := range entries {
		if !all && !e.running() {
			continue
		}
		line := psLine{entry: e}
		if err := c.complete(ctx, &line); status.Code(err) == codes.NotFound {
			continue // removed since it was listed
		} else if err != nil {
			return nil, err
		}
		lines = append(lines, line)
	}
	return lines, nil
}

// complete asks for the pod's address and for the code of an exited container.
func (c *client) complete(ctx context.Context, line *psLine) error {
	pod, err := c.runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: line.pod.GetId()})
	if err != nil {
		return err
	}
	line.ip = pod.GetStatus().GetNetwork().GetIp()
	if line.container.GetState() != runtimeapi.ContainerState_CONTAINER_EXITED {
		return nil
	}
	ctr, err := c.runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: line.container.GetId()})
	line.exitCode = ctr.GetStatus().GetExitCode()
	return err
}

func writePs(w io.Writer, now time.Time, lines []psLine, quiet bool) {
	if quiet {
		for _, l := range lines {
			fmt.Fprintln(w, shortID(l.id()))
		}
		return
	}
	t := newTable(w)
	t.row("NAME", "CONTAINER ID", "POD ID", "IMAGE", "STATE", "AGE", "IP", "PORTS")
	for _, l := range lines {
		created := l.container.GetCreatedAt()
		if l.container == nil {
			created = l.pod.GetCreatedAt()
		}
		t.row(l.name(), orDash(shortID(l.container.GetId())), shortID(l.pod.GetId()), orDash(l.image()), l.state(),
			age(now, created), orDash(l.ip), orDash(l.pod.GetAnnotations()[portsAnnotation]))
	}
	t.flush()
}

// id is the container's, or the pod's if it has no container.
func (l psLine) id() string {
	if l.container != nil {
		return l.container.GetId()
	}
	return l.pod.GetId()
}

func (l psLine) image() string {
	spec := l.container.GetImage()
	if name := spec.GetUserSpecifiedImage(); name != "" {
		return name
	}
	if strings.HasPrefix(spec.GetImage(), "sha256:") {
		return shortID(spec.GetImage())
	}
	return spec.GetImage()
}

func (l psLine) state() string {
	if l.container == nil {
		return "no container"
	}
	switch l.container.GetState() {
	case runtimeapi.ContainerState_CONTAINER_CREATED:
		return "created"
	case runtimeapi.ContainerState_CONTAINER_RUNNING:
		return "running"
	case runtimeapi.ContainerState_CONTAINER_EXITED:
		return fmt.Sprintf("exited (%d)", l.exitCode)
	default:
		return "unknown"
	}
}
