package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/cri/admin"
)

// podLogs holds the log directory of each pod that run makes. Tests have another
// one.
var podLogs = "/var/log/berth/pods"

func runCommand() *cobra.Command {
	o := &runOptions{}
	cmd := &cobra.Command{
		Use:   "run [flags] IMAGE [COMMAND [ARG…]]",
		Short: "Run a container in a pod of its own",
		Long: `Run a container in a pod of its own. The image is pulled if it is not there.

Without -d, the container's output is shown until it ends, and the exit code is
the container's. Ctrl-C stops it, a second Ctrl-C kills it. With -i it reads what
is typed or piped in. With -it it has a terminal: Ctrl-C is the container's, and
Ctrl-P Ctrl-Q leave it running. With -d its id is printed and it goes on alone.

The exit code is 125 if berth failed, 126 if the command could not be started, and
127 if it is not there.`,
		Example: `  berth run --rm busybox echo hello
  berth run -it --rm busybox
  echo hello | berth run -i --rm busybox wc -c
  berth run -d --name web -p 8080:80 -v /srv/www:/www:ro busybox httpd -f -h /www`,
		Annotations:       map[string]string{annotationCode: "yes"},
		Args:              usage(cobra.MinimumNArgs(1)),
		ValidArgsFunction: completeImages(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.image, o.args = args[0], args[1:]
			if o.name == "" {
				o.name = generateName(o.image)
			}
			r, err := o.plan()
			if err != nil {
				return usageError{err}
			}
			return withClient(r.run)(cmd, args)
		},
	}
	f := cmd.Flags()
	f.SetInterspersed(false) // flags after IMAGE are the container's
	f.StringVar(&o.name, "name", "", "`NAME` of the pod and the container (default: made from the image's)")
	f.BoolVarP(&o.detach, "detach", "d", false, "print the container's id and leave it running")
	f.BoolVarP(&o.interactive, "interactive", "i", false, "pass standard input on to the container")
	f.BoolVarP(&o.tty, "tty", "t", false, "give the container a terminal")
	f.BoolVar(&o.remove, "rm", false, "remove the container when it has ended (not with -d)")
	f.StringArrayVarP(&o.ports, "publish", "p", nil, "publish a port, `[IP:]HOST:CONTAINER[/udp]`; may be repeated")
	f.StringArrayVarP(&o.env, "env", "e", nil, "set a variable, `KEY=VALUE`, or pass KEY on; may be repeated")
	f.StringArrayVarP(&o.volumes, "volume", "v", nil, "mount a path of the host, `HOST:CONTAINER[:ro]`; may be repeated")
	f.StringVar(&o.hostname, "hostname", "", "host `NAME` (default: the pod's name)")
	f.StringVar(&o.network, "network", "builtin", "`builtin|host`: the node's CNI network, or Berth's own where there is none; or the host's network")
	f.StringVar(&o.handler, "runtime", "", "OCI runtime, a `HANDLER` that berth status shows (default: berthd's)")
	return cmd
}

// generateName makes a name from the last part of an image's.
func generateName(ref string) string {
	base, _, _ := strings.Cut(path.Base(ref), "@")
	base, _, _ = strings.Cut(base, ":")
	suffix := strings.ToLower(rand.Text()[:6])
	name := strings.ToLower(base) + "-" + suffix
	if !validName.MatchString(name) {
		return "run-" + suffix
	}
	return name
}

// runPlan is a `berth run` whose command line has been understood.
type runPlan struct {
	*runOptions
	logDir    string
	pod       *runtimeapi.RunPodSandboxRequest
	container *runtimeapi.ContainerConfig
}

func (o *runOptions) plan() (*runPlan, error) {
	if o.detach && o.remove {
		return nil, errors.New("--rm and -d exclude each other: remove a detached container with `berth rm`")
	}
	logDir := filepath.Join(podLogs, o.name)
	pod, err := o.podRequest(rand.Text(), logDir)
	if err != nil {
		return nil, err
	}
	container, err := o.containerConfig()
	if err != nil {
		return nil, err
	}
	return &runPlan{runOptions: o, logDir: logDir, pod: pod, container: container}, nil
}

func (r *runPlan) run(ctx context.Context, cmd *cobra.Command, c *client, _ []string) error {
	if r.interactive && r.tty && !r.detach && !isTerminal(cmd.InOrStdin()) {
		return errNoTerminal
	}
	if err := r.pullMissing(ctx, cmd, c); err != nil {
		return err
	}
	if err := r.reserveName(ctx, c); err != nil {
		return err
	}
	podID, id, err := r.start(ctx, c)
	if err != nil {
		return err
	}
	if r.detach {
		_ = say(cmd.OutOrStdout(), "%s", id)
		return nil
	}
	code, err := r.foreground(ctx, cmd, c, id)
	if errors.Is(err, errDetached) {
		_ = say(cmd.ErrOrStderr(), "%s goes on: `berth attach %s` comes back to it, `berth rm -f %s` removes it", r.name, r.name, r.name)
		return nil
	}
	if unheard := (unheardError{}); err != nil && !errors.As(err, &unheard) {
		return err
	}
	// The container has ended; its pod must not keep an address and ports.
	end := context.WithoutCancel(ctx)
	if _, err := c.runtime.StopPodSandbox(end, &runtimeapi.StopPodSandboxRequest{PodSandboxId: podID}); err != nil {
		return err
	}
	if r.remove {
		if err := c.removePod(end, podID, r.logDir); err != nil {
			return err
		}
	}
	if err == nil && code != 0 {
		err = codeError(code)
	}
	return err
}

// foreground attends the container. The terminal is raw only meanwhile.
func (r *runPlan) foreground(ctx context.Context, cmd *cobra.Command, c *client, id string) (code int, err error) {
	var keys *keyboard
	if r.interactive {
		keys = &keyboard{in: cmd.InOrStdin()}
	}
	if r.interactive && r.tty {
		if keys.terminal, err = rawTerminal(keys.in); err != nil {
			return 0, err
		}
		defer func() { keys.terminal.leave(cmd.ErrOrStderr(), err) }()
	}
	return c.attend(ctx, id, keys, &logPrinter{stdout: cmd.OutOrStdout(), stderr: cmd.ErrOrStderr()})
}

func (r *runPlan) pullMissing(ctx context.Context, cmd *cobra.Command, c *client) error {
	img, err := c.image(ctx, r.image)
	if err != nil || img != nil {
		return err
	}
	_, err = c.pull(ctx, cmd.ErrOrStderr(), r.image)
	return err
}

// reserveName makes the log directory; whoever makes it has the name. A
// directory without a pod was left by somebody who was killed, and is taken; the
// log in it is another container's and goes.
func (r *runPlan) reserveName(ctx context.Context, c *client) error {
	if err := os.MkdirAll(filepath.Dir(r.logDir), 0o755); err != nil {
		return fmt.Errorf("make log directory: %w", err)
	}
	err := os.Mkdir(r.logDir, 0o750)
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	all, err := c.entries(ctx)
	if err != nil {
		return err
	}
	for _, e := range all {
		if e.byHand() && e.name() == r.name {
			return fmt.Errorf("the name %s is taken: choose another one, or remove it with `berth rm -f %s`", r.name, r.name)
		}
	}
	if err := os.Remove(filepath.Join(r.logDir, logName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the log of an earlier %s: %w", r.name, err)
	}
	return nil
}

// start makes the pod and starts its container. After an error, or when ctx
// ends, nothing is left. The daemon finishes what it has begun whether its
// client waits or not, so this waits, to be able to remove it.
func (r *runPlan) start(ctx context.Context, c *client) (podID, id string, err error) {
	wait := context.WithoutCancel(ctx)
	if podID, err = admin.RunPod(wait, c.conn, r.pod); err != nil {
		return "", "", errors.Join(err, os.RemoveAll(r.logDir))
	}
	id, err = r.startContainer(wait, c, podID)
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return "", "", errors.Join(err, c.removePod(wait, podID, r.logDir))
	}
	return podID, id, nil
}

func (r *runPlan) startContainer(ctx context.Context, c *client, podID string) (id string, err error) {
	created, err := c.runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{
		PodSandboxId: podID, Config: r.container, SandboxConfig: r.pod.GetConfig(),
	})
	if err != nil {
		return "", err
	}
	id = created.GetContainerId()
	if _, err = c.runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id}); err != nil {
		return "", notBegun(err)
	}
	return id, nil
}
