package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
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

// Probe asks the binary what it is and what it can, and sets Version, OCIVersion
// and Features. It fails for what is no OCI runtime.
func (r *Runtime) Probe(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	// `features` is exact where it exists.
	var told *features.Features
	var asking sync.WaitGroup
	asking.Go(func() { told = r.askFeatures(ctx) })
	out, err := r.ask(ctx, "--version")
	asking.Wait()
	if err != nil {
		return fmt.Errorf("probe runtime %s: %w", r.Name, err)
	}
	var newest string
	for i, line := range strings.Split(out, "\n") {
		if i == 0 {
			r.Version = strings.Replace(strings.TrimSpace(line), " version ", " ", 1)
		}
		if v, ok := strings.CutPrefix(line, "spec: "); ok {
			newest = strings.TrimSpace(v)
		}
	}
	if told != nil {
		newest = told.OCIVersionMax
	}
	if newest == "" {
		return fmt.Errorf("probe runtime %s: %s says no OCI version: %q", r.Name, r.Path, firstLine(out))
	}
	r.OCIVersion = older(newest, specs.Version)
	r.quirks = quirksOf(r.Version, told)
	r.features = featuresOf(told, r.quirks)
	return nil
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
