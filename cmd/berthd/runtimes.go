package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

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
	noUserNS error                      // why pods get no user namespaces
}

type shownRuntime struct {
	Path       string `json:"path"`
	Version    string `json:"version"`
	OCIVersion string `json:"ociVersion"` // of the specs that it is given
}

// openRuntimes connects to the keeper, starting one where none runs, and probes
// the configured OCI runtimes. The caller closes what it returns.
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
	if err := all.keeper.Open(ctx); err != nil {
		return nil, fmt.Errorf("connect to berth-keeper: %w", err)
	}
	if renewed, err := all.keeper.Renew(ctx); err != nil {
		klog.ErrorS(err, "Upgrading the keeper; the next start of berthd tries again")
	} else if renewed {
		klog.InfoS("Upgraded the keeper in its own place", "path", binary)
	}
	all.noUserNS = oci.TryUserNamespaces(ctx, all.keeper, c.RunDir, c.DataDir)
	if all.noUserNS != nil {
		klog.InfoS("Pods get no user namespaces", "reason", all.noUserNS)
	}
	for _, name := range slices.Sorted(maps.Keys(c.Runtime.Handlers)) {
		if err := all.add(ctx, c, name); err != nil {
			all.close()
			return nil, fmt.Errorf("runtime handler %s: %w", name, err)
		}
	}
	return all, nil
}

// add offers one configured runtime. It is no error that one is missing that
// nobody has asked for.
func (r *runtimes) add(ctx context.Context, c config, name string) error {
	path := c.Runtime.Handlers[name].Path
	if path == "" {
		dirs := append([]string{c.LibexecDir}, filepath.SplitList(os.Getenv("PATH"))...)
		found, err := oci.Find(name, dirs)
		if err != nil && name != c.Runtime.Default {
			klog.InfoS("OCI runtime is not offered", "handler", name, "reason", err)
			return nil
		}
		if err != nil {
			return fmt.Errorf("install it, or set another runtime.default: %w", err)
		}
		path = found
	}
	runtime := &oci.Runtime{Name: name, Path: path, Run: c.RunDir, Keeper: r.keeper, NoUserNS: r.noUserNS, Timeout: time.Duration(c.Runtime.Timeout)}
	if err := runtime.Probe(ctx); err != nil {
		return err
	}
	klog.InfoS("OCI runtime is offered", "handler", name, "path", path, "version", runtime.Version, "ociVersion", runtime.OCIVersion)
	r.handlers[name] = runtime
	r.shown[name] = shownRuntime{path, runtime.Version, runtime.OCIVersion}
	return nil
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
