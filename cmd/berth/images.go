package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func imagesCommand() *cobra.Command {
	var o listOptions
	cmd := &cobra.Command{
		Use:     "images [IMAGE]",
		Short:   "List images",
		Long:    "List the images of this node, or the one that a tag, digest or id names.",
		Example: "  berth images\n  berth images -o json | jq '[.[].size] | add'",
		Args:    usage(cobra.MaximumNArgs(1)),
		RunE: withClient(func(ctx context.Context, cmd *cobra.Command, c *client, args []string) error {
			req := &runtimeapi.ListImagesRequest{}
			if len(args) == 1 {
				req.Filter = &runtimeapi.ImageFilter{Image: &runtimeapi.ImageSpec{Image: args[0]}}
			}
			lines, err := c.imageLines(ctx, req)
			if err != nil {
				return err
			}
			return writeImages(cmd.OutOrStdout(), time.Now(), lines, o)
		}),
		ValidArgsFunction: completeImages(1),
	}
	addListOptions(cmd, &o)
	return cmd
}

// imageLine is an image with what the list does not tell.
type imageLine struct {
	*runtimeapi.Image
	created, pulled *time.Time // nil: not known
}

func (c *client) imageLines(ctx context.Context, req *runtimeapi.ListImagesRequest) ([]imageLine, error) {
	resp, err := c.images.ListImages(ctx, req)
	if err != nil {
		return nil, err
	}
	var lines []imageLine
	for _, img := range resp.GetImages() {
		status, err := c.images.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: img.GetId()}, Verbose: true})
		if err != nil {
			return nil, err
		}
		if status.GetImage() == nil {
			continue // removed since it was listed
		}
		line := imageLine{Image: img}
		if err := line.complete(status.GetInfo()); err != nil {
			return nil, err
		}
		lines = append(lines, line)
	}
	return lines, nil
}

// complete takes the times from an image's verbose info.
func (l *imageLine) complete(info map[string]string) error {
	if info["info"] == "" {
		return nil
	}
	var says struct {
		ImageSpec struct {
			Created *time.Time `json:"created"`
		} `json:"imageSpec"`
		Pulled *time.Time `json:"pulled"`
	}
	if err := json.Unmarshal([]byte(info["info"]), &says); err != nil {
		return fmt.Errorf("read info of image %s: %w", l.GetId(), err)
	}
	l.created, l.pulled = says.ImageSpec.Created, says.Pulled
	return nil
}

func (l imageLine) report() imageReport {
	return imageReport{
		ID: l.GetId(), Tags: append([]string{}, l.GetRepoTags()...), Digests: append([]string{}, l.GetRepoDigests()...),
		Size: l.GetSize(), Created: l.created, Pulled: l.pulled,
	}
}

// writeImages writes a row per tag; an image without a tag has one by digest.
func writeImages(w io.Writer, now time.Time, images []imageLine, o listOptions) error {
	if o.format == formatJSON {
		return writeJSON(w, reports(images, imageLine.report))
	}
	if o.quiet {
		for _, img := range images {
			if err := say(w, "%s", showID(img.GetId(), o.whole)); err != nil {
				return err
			}
		}
		return nil
	}
	t := newTable(w, o.whole)
	t.row("REPOSITORY", "TAG", "IMAGE ID", "SIZE", "CREATED")
	for _, img := range images {
		built := int64(0)
		if img.created != nil {
			built = img.created.UnixNano()
		}
		for _, name := range imageNames(img.Image) {
			repository, tag := splitTag(name)
			t.row(repository, tag, showID(img.GetId(), o.whole), size(img.GetSize()), age(now, built))
		}
	}
	return t.flush()
}

func imageNames(img *runtimeapi.Image) []string {
	switch {
	case len(img.GetRepoTags()) > 0:
		return img.GetRepoTags()
	case len(img.GetRepoDigests()) > 0:
		return img.GetRepoDigests()
	default:
		return []string{""}
	}
}

// splitTag splits a full reference into repository and tag. A colon before the
// last slash belongs to a port.
func splitTag(ref string) (repository, tag string) {
	ref, _, byDigest := strings.Cut(ref, "@")
	colon := strings.LastIndexByte(ref, ':')
	if byDigest || colon <= strings.LastIndexByte(ref, '/') {
		return orDash(ref), "-"
	}
	return ref[:colon], ref[colon+1:]
}
