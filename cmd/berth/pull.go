package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func pullCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "pull IMAGE",
		Short:   "Pull an image from a registry",
		Example: "  berth pull busybox:1.36\n  berth pull localhost:5000/web@sha256:…",
		Args:    usage(cobra.ExactArgs(1)),
		RunE: withClient(func(ctx context.Context, cmd *cobra.Command, c *client, args []string) error {
			_, err := c.pull(ctx, cmd.OutOrStdout(), args[0])
			return err
		}),
	}
}

// pull pulls an image and writes to w what it did.
func (c *client) pull(ctx context.Context, w io.Writer, ref string) (*runtimeapi.Image, error) {
	before, err := c.image(ctx, ref)
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(w, "Pulling %s\n", ref)
	began := time.Now()
	spec := &runtimeapi.ImageSpec{Image: ref}
	pulled, err := c.images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: spec})
	if err != nil {
		return nil, err
	}
	img, err := c.image(ctx, pulled.GetImageRef())
	if err != nil {
		return nil, err
	}
	if img == nil {
		return nil, fmt.Errorf("image %s was removed while it was pulled", ref)
	}
	if before.GetId() == img.GetId() {
		fmt.Fprintf(w, "%s is up to date: %s\n", ref, shortID(img.GetId()))
	} else {
		took := time.Since(began).Round(10 * time.Millisecond)
		fmt.Fprintf(w, "Pulled %s: %s, %s in %v\n", ref, shortID(img.GetId()), size(img.GetSize()), took)
	}
	return img, nil
}

// image finds an image of the store; nil if it is not there.
func (c *client) image(ctx context.Context, ref string) (*runtimeapi.Image, error) {
	resp, err := c.images.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
	return resp.GetImage(), err
}
