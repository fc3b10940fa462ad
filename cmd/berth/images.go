package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func imagesCommand() *cobra.Command {
	var quiet bool
	cmd := &cobra.Command{
		Use:   "images [IMAGE]",
		Short: "List images",
		Args:  usage(cobra.MaximumNArgs(1)),
		RunE: withClient(func(ctx context.Context, cmd *cobra.Command, c *client, args []string) error {
			req := &runtimeapi.ListImagesRequest{}
			if len(args) == 1 {
				req.Filter = &runtimeapi.ImageFilter{Image: &runtimeapi.ImageSpec{Image: args[0]}}
			}
			resp, err := c.images.ListImages(ctx, req)
			if err != nil {
				return err
			}
			writeImages(cmd.OutOrStdout(), resp.GetImages(), quiet)
			return nil
		}),
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "show the ids only")
	return cmd
}

// writeImages writes a row per tag; an image without a tag has one by digest.
func writeImages(w io.Writer, images []*runtimeapi.Image, quiet bool) {
	if quiet {
		for _, img := range images {
			fmt.Fprintln(w, shortID(img.GetId()))
		}
		return
	}
	t := newTable(w)
	t.row("IMAGE", "TAG", "IMAGE ID", "SIZE")
	for _, img := range images {
		for _, name := range imageNames(img) {
			repository, tag := splitTag(name)
			t.row(repository, tag, shortID(img.GetId()), size(img.GetSize()))
		}
	}
	t.flush()
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
