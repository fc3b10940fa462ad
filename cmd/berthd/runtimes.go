package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/klog/v2"

	"berth/oci"
	"berth/oci/keeper"
	"berth/sandbox"
)

// keeperAnswer is how long the keeper may take to say that it is there: less
// than the time between two of the kubelet's questions.
const keeperAnswer = 2 * time.Second

// runtimes are the OCI runtimes of this node and the keeper that they share.
type runtimes struct {
	keeper   *keeper.Client
	handlers map[string]sandbox.Runtime // by the name that pods ask for
	shown    map[string]shownRuntime    // the same ones, in a verbose Status
	noUserNS func() error               // why pods get no user namespaces; tried when first asked
}

type shownRuntime struct {
	Path       string `json:"path"`
	Version    string `json:"version"`
	OCIVersion string `json:"ociVersion"` // of the specs that it is given
}

// openRuntimes connects to the keeper, starting one where none runs, and probes
// the configured OCI runtimes meanwhile. The caller closes what it returns.
func openRuntimes(ctx context.Context, c config) (*runtimes, error) {
	binary, err := findKeeper(c.LibexecDir)
	if err != nil {
		return nil, err
	}
	all := &runtimes{
		keeper:   &keeper.Client{Run: c.RunDir, Binary: binary, Logf: klog.Infof},
		handlers: map[string]sandbox.Runtime{},
		shown:    map[string]shownRuntime{},
	}
	all.noUserNS = untilKnown(func() error {
		err := oci.TryUserNamespaces(ctx, all.keeper, c.RunDir, c.DataDir)
		if err != nil {
			klog.InfoS("Pods get no user namespaces", "reason", err)
		}
		return err
	})
	probing, stop := context.WithCancel(ctx)
	defer stop()
	probed := make(chan error, 1)
	go func() { probed <- all.probe(probing, c) }()
	if err := all.connect(ctx); err != nil {
		stop()
		<-probed
		return nil, err
	}
	if err := <-probed; err != nil {
		all.close()
		return nil, err
	}
	return all, nil
}

// untilKnown asks again after an error that says nothing of the node, and
// remembers what else try has said.
func untilKnown(try func() error) func() error {
	var (
		mu    sync.Mutex
		known bool
		said  error
	)
	return func() error {
		mu.Lock()
		defer mu.Unlock()
		if !known {
			said = try()
			known = said == nil || errors.Is(said, oci.ErrNotSupported)
		}
		return said
	}
}

// connect opens the keeper's client, and has a keeper of an older program become
// the one that is installed now.
func (r *runtimes) connect(ctx context.Context) error {
	if err := r.keeper.Open(ctx); err != nil {
		return fmt.Errorf("connect to berth-keeper: %w", err)
	}
	if renewed, err := r.keeper.Renew(ctx); err != nil {
		klog.ErrorS(err, "Upgrading the keeper; the next start of berthd tries again")
	} else if renewed {
		klog.InfoS("Upgraded the keeper in its own place", "path", r.keeper.Binary)
	}
	return nil
}

// probe asks all runtimes at once, since each takes a while, what they can, and
// offers them.
func (r *runtimes) probe(ctx context.Context, c config) error {
	names := slices.Sorted(maps.Keys(c.Runtime.Handlers))
	found := make([]*oci.Runtime, len(names))
	group, ctx := errgroup.WithContext(ctx)
	for i, name := range names {
		group.Go(func() (err error) {
			if found[i], err = r.find(ctx, c, name); err != nil {
				return fmt.Errorf("runtime handler %s: %w", name, err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	for _, runtime := range found {
		if runtime == nil {
			continue
		}
		klog.InfoS("OCI runtime is offered", "handler", runtime.Name, "path", runtime.Path, "version", runtime.Version, "ociVersion", runtime.OCIVersion)
		r.handlers[runtime.Name] = runtime
		r.shown[runtime.Name] = shownRuntime{runtime.Path, runtime.Version, runtime.OCIVersion}
	}
	return nil
}

// find looks for one configured runtime and asks what it can. It is no error that
// one is missing that nobody has asked for: nil.
func (r *runtimes) find(ctx context.Context, c config, name string) (*oci.Runtime, error) {
	path := c.Runtime.Handlers[name].Path
	if path == "" {
		dirs := append([]string{c.LibexecDir}, filepath.SplitList(os.Getenv("PATH"))...)
		found, err := oci.Find(name, dirs)
		if err != nil && name != c.Runtime.Default {
			klog.InfoS("OCI runtime is not offered", "handler", name, "reason", err)
			return nil, nil
		}
		if err != nil {
			return nil, fmt.Errorf("install it, or set another runtime.default: %w", err)
		}
		path = found
	}
	runtime := &oci.Runtime{Name: name, Path: path, Run: c.RunDir, Keeper: r.keeper, Timeout: time.Duration(c.Runtime.Timeout), NoUserNS: r.noUserNS}
	return runtime, runtime.Probe(ctx)
}

// findKeeper looks for berth-keeper beside this program and in libexec.
func findKeeper(libexec string) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find berth-keeper: %w", err)
	}
	path, err := oci.Find("berth-keeper", []string{filepath.Dir(self), libexec})
	if err != nil {
		return "", fmt.Errorf("find berth-keeper: %w", err)
	}
	return path, nil
}

// Status tells whether the keeper answers (cri.Checker).
func (r *runtimes) Status(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, keeperAnswer, errors.New("berth-keeper does not answer"))
	defer cancel()
	if _, err := r.keeper.Hello(ctx); err != nil {
		return errors.Join(context.Cause(ctx), err)
	}
	return nil
}

// close leaves the keeper and all containers running.
func (r *runtimes) close() { r.keeper.Close() }
