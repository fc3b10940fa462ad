package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// listOptions is the command line of the commands that list things.
type listOptions struct {
	quiet, whole bool
	format       format
}

// addListOptions gives cmd the flags that all lists have.
func addListOptions(cmd *cobra.Command, o *listOptions) {
	addFormat(cmd, &o.format)
	cmd.Flags().BoolVarP(&o.quiet, "quiet", "q", false, "show the ids only")
	cmd.Flags().BoolVar(&o.whole, "no-trunc", false, "show ids whole and cut nothing to the window")
	cmd.PreRunE = func(*cobra.Command, []string) error {
		if o.quiet && o.format == formatJSON {
			return usageError{errors.New("-q and -o json exclude each other: the JSON has the ids")}
		}
		return nil
	}
}

func psCommand() *cobra.Command {
	var all bool
	var o listOptions
	cmd := &cobra.Command{
		Use:   "ps",
		Short: "List containers",
		Long: `List the containers that run, newest first. Those of a kubelet have the name
namespace/pod/container.`,
		Example: `  berth ps -a
  berth ps -o json | jq -r '.[] | select(.state == "running").name'
  berth rm -f $(berth ps -q)`,
		Args: usage(cobra.NoArgs),
		RunE: withClient(func(ctx context.Context, cmd *cobra.Command, c *client, _ []string) error {
			lines, err := c.ps(ctx, all)
			if err != nil {
				return err
			}
			return writePs(cmd.OutOrStdout(), time.Now(), lines, o)
		}),
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "show those that do not run as well")
	addListOptions(cmd, &o)
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

func writePs(w io.Writer, now time.Time, lines []psLine, o listOptions) error {
	if o.format == formatJSON {
		return writeJSON(w, reports(lines, psLine.report))
	}
	if o.quiet {
		for _, l := range lines {
			if err := say(w, "%s", showID(l.id(), o.whole)); err != nil {
				return err
			}
		}
		return nil
	}
	t := newTable(w, o.whole)
	t.row("NAME", "CONTAINER ID", "POD ID", "IMAGE", "STATE", "AGE", "IP", "PORTS")
	for _, l := range lines {
		t.row(l.name(), orDash(showID(l.container.GetId(), o.whole)), showID(l.pod.GetId(), o.whole), orDash(l.image(o.whole)), l.state(),
			age(now, l.created()), orDash(l.ip), orDash(l.pod.GetAnnotations()[portsAnnotation]))
	}
	return t.flush()
}

// created is the container's, or the pod's if it has no container, in
// nanoseconds since 1970.
func (l psLine) created() int64 {
	if l.container != nil {
		return l.container.GetCreatedAt()
	}
	return l.pod.GetCreatedAt()
}

// id is the container's, or the pod's if it has no container.
func (l psLine) id() string {
	if l.container != nil {
		return l.container.GetId()
	}
	return l.pod.GetId()
}

// image is what the user named, else what the container's maker did.
func (l psLine) image(whole bool) string {
	spec := l.container.GetImage()
	if name := spec.GetUserSpecifiedImage(); name != "" {
		return name
	}
	if strings.HasPrefix(spec.GetImage(), "sha256:") {
		return showID(spec.GetImage(), whole)
	}
	return spec.GetImage()
}

func (l psLine) state() string {
	switch word := l.stateWord(); word {
	case "none":
		return "no container"
	case "exited":
		return fmt.Sprintf("exited (%d)", l.exitCode)
	default:
		return word
	}
}

// stateWord is the container's state; none for a pod without one.
func (l psLine) stateWord() string {
	if l.container == nil {
		return "none"
	}
	switch l.container.GetState() {
	case runtimeapi.ContainerState_CONTAINER_CREATED:
		return "created"
	case runtimeapi.ContainerState_CONTAINER_RUNNING:
		return "running"
	case runtimeapi.ContainerState_CONTAINER_EXITED:
		return "exited"
	default:
		return "unknown"
	}
}
