package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/cri/admin"
)

func pullCommand() *cobra.Command {
	var quiet bool
	cmd := &cobra.Command{
		Use:   "pull [flags] IMAGE",
		Short: "Pull an image from a registry",
		Long: `Pull an image from a registry. On a terminal each layer has a bar, else a line when
it is complete; several pulls of one layer share its download. Ctrl-C gives the
pull up.`,
		Example: "  berth pull busybox:1.36\n  berth pull localhost:5000/web@sha256:…",
		Args:    usage(cobra.ExactArgs(1)),
		RunE: withClient(func(ctx context.Context, cmd *cobra.Command, c *client, args []string) error {
			if !quiet {
				_, err := c.pull(ctx, cmd.OutOrStdout(), args[0])
				return err
			}
			img, err := c.pull(ctx, io.Discard, args[0])
			if err == nil {
				_ = say(cmd.OutOrStdout(), "%s", img.GetId())
			}
			return err
		}),
		ValidArgsFunction: completeImages(1),
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print the image's id only")
	return cmd
}

// pull pulls an image and writes to w how far it is and what it did.
func (c *client) pull(ctx context.Context, w io.Writer, ref string) (*runtimeapi.Image, error) {
	before, err := c.image(ctx, ref)
	if err != nil {
		return nil, err
	}
	_ = say(w, "Pulling %s", ref)
	began := time.Now()
	req := &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}}
	id, err := admin.Pull(ctx, c.conn, req, newPullProgress(w).show)
	if err != nil {
		return nil, err
	}
	img, err := c.image(ctx, id)
	if err != nil {
		return nil, err
	}
	if img == nil {
		return nil, fmt.Errorf("image %s was removed while it was pulled", ref)
	}
	if before.GetId() == img.GetId() {
		_ = say(w, "%s is up to date: %s", ref, shortID(img.GetId()))
	} else {
		took := time.Since(began).Round(10 * time.Millisecond)
		_ = say(w, "Pulled %s: %s, %s in %v", ref, shortID(img.GetId()), size(img.GetSize()), took)
	}
	return img, nil
}

// image finds an image of the store; nil if it is not there.
func (c *client) image(ctx context.Context, ref string) (*runtimeapi.Image, error) {
	resp, err := c.images.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
	return resp.GetImage(), err
}
