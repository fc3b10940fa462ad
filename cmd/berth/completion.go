package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// completionTimeout bounds how long a Tab may take.
const completionTimeout = 2 * time.Second

func completionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "completion bash|zsh|fish",
		Short: "Print the completion script of a shell",
		Long: `Print the completion script of a shell. It completes commands and flags, and the
names of containers, pods and images that are on this node.`,
		Example: `  source <(berth completion bash)                              # this shell
  berth completion bash >/etc/bash_completion.d/berth          # all of them
  berth completion zsh >"${fpath[1]}/_berth"
  berth completion fish >~/.config/fish/completions/berth.fish`,
		ValidArgs:             []string{"bash", "zsh", "fish"},
		Args:                  usage(cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs)),
		DisableFlagsInUseLine: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			w, root := cmd.OutOrStdout(), cmd.Root()
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(w, true)
			case "zsh":
				return root.GenZshCompletion(w)
			default:
				return root.GenFishCompletion(w, true)
			}
		},
	}
}

// completion asks the daemon what may stand where the cursor is. It says nothing
// when that fails: a Tab is no place for errors.
type completion = func(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective)

// complete completes up to most arguments (0: any number), none of them twice.
func complete(most int, candidates func(context.Context, *client) ([]cobra.Completion, error)) completion {
	return func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if most > 0 && len(args) >= most {
			return nil, cobra.ShellCompDirectiveDefault
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(cmd.Context()), completionTimeout)
		defer cancel()
		var found []cobra.Completion
		cmd.SetContext(ctx)
		err := withClient(func(ctx context.Context, _ *cobra.Command, c *client, _ []string) (err error) {
			found, err = candidates(ctx, c)
			return err
		})(cmd, args)
		if err != nil {
			cobra.CompDebugln(err.Error(), false)
		}
		// A name that cannot be shown is not offered: the shell would take a line
		// break for the end of a name.
		found = slices.DeleteFunc(found, func(c cobra.Completion) bool { return slices.Contains(args, c) || !isShown(c) })
		slices.Sort(found)
		return slices.Compact(found), cobra.ShellCompDirectiveNoFileComp
	}
}

// completeFlag completes the value of a flag that cmd has.
func completeFlag(cmd *cobra.Command, flag string, values ...cobra.Completion) {
	if err := cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err) // it has no such flag: a mistake in this program
	}
}

// What completeNames completes.
func anyContainer(e entry) bool     { return e.container != nil }
func runningContainer(e entry) bool { return e.container != nil && e.running() }
func anyEntry(entry) bool           { return true }

// completeNames completes the names of containers and pods.
func completeNames(wanted func(entry) bool, most int) completion {
	return complete(most, func(ctx context.Context, c *client) ([]cobra.Completion, error) {
		return names(ctx, c, wanted)
	})
}

func names(ctx context.Context, c *client, wanted func(entry) bool) ([]cobra.Completion, error) {
	all, err := c.entries(ctx)
	var found []cobra.Completion
	for _, e := range all {
		if wanted(e) {
			found = append(found, e.name())
		}
	}
	return found, err
}

// completeImages completes the names of images.
func completeImages(most int) completion {
	return complete(most, images)
}

func images(ctx context.Context, c *client) ([]cobra.Completion, error) {
	resp, err := c.images.ListImages(ctx, &runtimeapi.ListImagesRequest{})
	var found []cobra.Completion
	for _, img := range resp.GetImages() {
		found = append(found, img.GetRepoTags()...)
	}
	return found, err
}

// completeAnything completes what `berth inspect` shows.
func completeAnything() completion {
	return complete(0, func(ctx context.Context, c *client) ([]cobra.Completion, error) {
		containers, err := names(ctx, c, anyEntry)
		if err != nil {
			return nil, fmt.Errorf("list names: %w", err)
		}
		tags, err := images(ctx, c)
		return append(containers, tags...), err
	})
}
