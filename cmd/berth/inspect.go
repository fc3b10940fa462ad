package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// kind is what an inspected thing is; empty for any.
type kind string

const (
	kindContainer kind = "container"
	kindPod       kind = "pod"
	kindImage     kind = "image"
)

func (k *kind) String() string { return string(*k) }
func (k *kind) Type() string   { return "container|pod|image" }

func (k *kind) Set(text string) error {
	switch kind(text) {
	case kindContainer, kindPod, kindImage:
		*k = kind(text)
		return nil
	}
	return errors.New("use container, pod or image")
}

func inspectCommand() *cobra.Command {
	var only kind
	f := formatJSON
	cmd := &cobra.Command{
		Use:   "inspect [flags] NAME…",
		Short: "Show all that is known of containers, pods and images, as JSON",
		Long: `Show all that is known of containers, pods and images, as a JSON list. A name that
several things have is a container's before a pod's before an image's; --type says
which is meant.`,
		Example: `  berth inspect web | jq -r '.[0].status.state'
  berth inspect --type pod web | jq -r '.[0].status.network.ip'
  berth inspect busybox:1.36`,
		Args:              usage(cobra.MinimumNArgs(1)),
		ValidArgsFunction: completeAnything(),
		PreRunE: func(*cobra.Command, []string) error {
			if f != formatJSON {
				return usageError{errors.New("-o: this command shows JSON only")}
			}
			return nil
		},
		RunE: withClient(func(ctx context.Context, cmd *cobra.Command, c *client, args []string) error {
			all, err := c.inspect(ctx, only, args)
			if err != nil {
				return err
			}
			return writeJSON(cmd.OutOrStdout(), all)
		}),
	}
	cmd.Flags().Var(&only, "type", "`container|pod|image`: what NAME is")
	completeFlag(cmd, "type", string(kindContainer), string(kindPod), string(kindImage))
	cmd.Flags().VarP(&f, "output", "o", "`json`: there is no other output of this command")
	return cmd
}

func (c *client) inspect(ctx context.Context, only kind, names []string) ([]inspectReport, error) {
	entries, err := c.entries(ctx)
	if err != nil {
		return nil, err
	}
	var all []inspectReport
	for _, name := range names {
		r, err := c.inspectOne(ctx, only, entries, name)
		if err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	return all, nil
}

// inspectOne tries the kinds in their order.
func (c *client) inspectOne(ctx context.Context, only kind, entries []entry, name string) (inspectReport, error) {
	if only == "" || only == kindContainer {
		e, err := findInspected(entries, name, func(e entry) bool {
			return e.container != nil && (e.named(name) || strings.HasPrefix(e.container.GetId(), name))
		})
		if err == nil {
			return c.inspectContainer(ctx, e)
		}
		if only == kindContainer {
			return inspectReport{}, err
		}
	}
	if only == "" || only == kindPod {
		e, err := findInspected(onePerPod(entries), name, func(e entry) bool {
			m := e.pod.GetMetadata()
			return name == m.GetName() || name == m.GetNamespace()+"/"+m.GetName() || strings.HasPrefix(e.pod.GetId(), name)
		})
		if err == nil {
			return c.inspectPod(ctx, e, entries)
		}
		if only == kindPod {
			return inspectReport{}, err
		}
	}
	return c.inspectImage(ctx, only, name)
}

// findInspected returns the one entry that is.
func findInspected(entries []entry, name string, is func(entry) bool) (entry, error) {
	matches := slices.DeleteFunc(slices.Clone(entries), func(e entry) bool { return !is(e) })
	switch {
	case len(matches) == 0 || name == "":
		return entry{}, fmt.Errorf("there is no %q of this type: `berth ps -a` lists containers with their pods", name)
	case len(matches) > 1:
		return entry{}, fmt.Errorf("%q is not clear, use an id: `berth ps -a` shows them", name)
	}
	return matches[0], nil
}

func onePerPod(entries []entry) []entry {
	return slices.CompactFunc(slices.Clone(entries), func(a, b entry) bool { return a.pod.GetId() == b.pod.GetId() })
}

func (c *client) inspectContainer(ctx context.Context, e entry) (inspectReport, error) {
	resp, err := c.runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: e.container.GetId(), Verbose: true})
	if err != nil {
		return inspectReport{}, err
	}
	pod := e.podName()
	r := inspectReport{Kind: string(kindContainer), ID: e.container.GetId(), Name: e.name(), Pod: &pod}
	return r.with(resp.GetStatus(), resp.GetInfo())
}

func (c *client) inspectPod(ctx context.Context, e entry, entries []entry) (inspectReport, error) {
	resp, err := c.runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: e.pod.GetId(), Verbose: true})
	if err != nil {
		return inspectReport{}, err
	}
	r := inspectReport{Kind: string(kindPod), ID: e.pod.GetId(), Name: entry{pod: e.pod}.name()}
	for _, other := range entries {
		if other.container != nil && other.pod.GetId() == r.ID {
			r.Containers = append(r.Containers, other.container.GetId())
		}
	}
	return r.with(resp.GetStatus(), resp.GetInfo())
}

func (c *client) inspectImage(ctx context.Context, only kind, name string) (inspectReport, error) {
	resp, err := c.images.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: name}, Verbose: true})
	img := resp.GetImage()
	switch {
	case only == "" && (err != nil || img == nil):
		return inspectReport{}, fmt.Errorf("there is no container, pod or image %q: `berth ps -a` and `berth images` list them", name)
	case err != nil:
		return inspectReport{}, err
	case img == nil:
		return inspectReport{}, noImage(name)
	}
	r := inspectReport{Kind: string(kindImage), ID: img.GetId(), Name: imageNames(img)[0]}
	return r.with(img, resp.GetInfo())
}

// with adds the status and the verbose info of a response.
func (r inspectReport) with(status proto.Message, info map[string]string) (inspectReport, error) {
	data, err := protojson.Marshal(status)
	if err != nil {
		return inspectReport{}, fmt.Errorf("encode status of %s: %w", r.Name, err)
	}
	var compact bytes.Buffer // protojson's spaces differ from one build to the next
	if err := json.Compact(&compact, data); err != nil {
		return inspectReport{}, fmt.Errorf("encode status of %s: %w", r.Name, err)
	}
	r.Status = compact.Bytes()
	if text := info["info"]; text != "" {
		r.Info = json.RawMessage(text)
	}
	return r, nil
}
