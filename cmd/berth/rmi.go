package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func rmiCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "rmi [flags] IMAGE…",
		Short: "Remove images",
		Long: `Remove images, each with all of its tags. An image that a container uses is kept,
unless -f is given: the container goes on then, and its layers stay while it is
there.`,
		Example:           "  berth rmi busybox:1.36\n  berth rmi $(berth images -q)",
		Args:              usage(cobra.MinimumNArgs(1)),
		ValidArgsFunction: completeImages(0),
		RunE: withClient(func(ctx context.Context, cmd *cobra.Command, c *client, args []string) error {
			var failed []error
			for _, ref := range args {
				img, err := c.removeImage(ctx, ref, force)
				if err != nil {
					failed = append(failed, errors.New(message(err)))
					continue
				}
				for _, tag := range img.GetRepoTags() {
					_ = say(cmd.OutOrStdout(), "Untagged %s", tag)
				}
				_ = say(cmd.OutOrStdout(), "Removed %s", img.GetId())
			}
			return errors.Join(failed...)
		}),
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "remove also what containers use")
	return cmd
}

func (c *client) removeImage(ctx context.Context, ref string, force bool) (*runtimeapi.Image, error) {
	img, err := c.image(ctx, ref)
	if err != nil {
		return nil, err
	}
	if img == nil {
		return nil, noImage(ref)
	}
	if !force {
		users, err := c.usersOf(ctx, img.GetId())
		if err != nil {
			return nil, err
		}
		if len(users) > 0 {
			return nil, fmt.Errorf("%s is used by %s: remove them first, or use -f", ref, strings.Join(users, ", "))
		}
	}
	_, err = c.images.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: img.GetId()}})
	return img, err
}

// usersOf are the names of the containers that use an image.
func (c *client) usersOf(ctx context.Context, id string) ([]string, error) {
	all, err := c.entries(ctx)
	if err != nil {
		return nil, err
	}
	var users []string
	for _, e := range all {
		if e.container.GetImageId() == id {
			users = append(users, e.name())
		}
	}
	slices.Sort(users)
	return users, nil
}

func noImage(ref string) error {
	return fmt.Errorf("no image %q: `berth images` lists them all", ref)
}
