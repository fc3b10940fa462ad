package oci

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-spec/specs-go/features"
	"golang.org/x/sys/unix"
)

// probeTimeout bounds one question to a runtime binary.
const probeTimeout = 10 * time.Second

// Find looks for an executable in dirs, in order.
func Find(name string, dirs []string) (path string, err error) {
	for _, dir := range dirs {
		path := filepath.Join(dir, name)
		var st unix.Stat_t
		if unix.Stat(path, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFREG && unix.Access(path, unix.X_OK) == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s is in none of %s: %w", name, strings.Join(dirs, ", "), exec.ErrNotFound)
}

// versionKeys are the annotations by which runtimes tell their version among their
// features, with their names.
var versionKeys = map[string]string{"org.opencontainers.runc.version": "runc", "run.oci.crun.version": "crun"}

// Probe asks the binary what it is and what it can: Version, OCIVersion, what
// Features returns, and its quirks. It fails for what is no OCI runtime.
func (r *Runtime) Probe(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	told := r.askFeatures(ctx)
	var newest string
	if told != nil {
		newest = told.OCIVersionMax
		for key, name := range versionKeys {
			if v := told.Annotations[key]; v != "" {
				r.Version = name + " " + v
			}
		}
	}
	if r.Version == "" { // one more process, for those that tell less
		out, err := r.ask(ctx, "--version")
		if err != nil {
			return fmt.Errorf("probe runtime %s: %w", r.Name, err)
		}
		var spec string
		r.Version, spec = parseVersion(out)
		newest = cmp.Or(newest, spec)
	}
	if newest == "" {
		return fmt.Errorf("probe runtime %s: %s says no OCI version: %q", r.Name, r.Path, r.Version)
	}
	r.OCIVersion = older(newest, specs.Version)
	r.quirks = quirksOf(r.Version, told)
	r.features = featuresOf(told, r.quirks)
	return nil
}

// parseVersion reads what --version prints: "crun version 1.8.1", and in a line of
// its own the OCI version that the runtime knows; empty: there is none.
func parseVersion(out string) (version, spec string) {
	for line := range strings.Lines(out) {
		if v, ok := strings.CutPrefix(line, "spec: "); ok {
			spec = strings.TrimSpace(v)
		}
	}
	return strings.Replace(firstLine(out), " version ", " ", 1), spec
}

// askFeatures returns what the binary says that it can; nil if it says nothing.
func (r *Runtime) askFeatures(ctx context.Context) *features.Features {
	out, err := r.ask(ctx, "features")
	var f features.Features
	if err != nil || json.Unmarshal([]byte(out), &f) != nil || f.OCIVersionMax == "" {
		return nil
	}
	return &f
}

func (r *Runtime) ask(ctx context.Context, arg string) (string, error) {
	cmd := exec.CommandContext(ctx, r.Path, arg)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) && len(exit.Stderr) > 0 {
			err = fmt.Errorf("%w: %s", err, firstLine(string(exit.Stderr)))
		}
		return "", fmt.Errorf("%s %s: %w", r.Path, arg, err)
	}
	return string(out), nil
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(s), "\n")
	return line
}

// older returns the lesser of two versions "major.minor.patch[+-…]".
func older(a, b string) string {
	x, y := versionNumbers(a), versionNumbers(b)
	for i := range x {
		if x[i] != y[i] {
			if x[i] < y[i] {
				return a
			}
			return b
		}
	}
	return a
}

func versionNumbers(v string) (n [3]int) {
	v, _, _ = strings.Cut(v, "+")
	v, _, _ = strings.Cut(v, "-")
	for i, part := range strings.SplitN(v, ".", 3) {
		n[i], _ = strconv.Atoi(part)
	}
	return n
}
