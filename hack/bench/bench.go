package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The file that containers write, serve and send has lines of this length.
const (
	lineLength = 100
	megabyte   = 1_000_000
	linesSize  = 50 * megabyte
)

// bench is one run: the two sides, and what it has found out about them.
type bench struct {
	options
	oci      string // path of the OCI runtime
	sides    [2]*side
	versions [2]string
	image    string // of all containers
	lines    string // a file of linesSize
	table    table
}

// A measurement finds out some rows of the table. Both daemons run before and after
// it, without pods.
type measurement struct {
	name string
	of   func(*bench, context.Context) error
}

var measurements = []measurement{
	{"empty", (*bench).empty},
	{"isolated", (*bench).isolated},
	{"burst", (*bench).burst},
	{"full", (*bench).full},
	{"output", (*bench).containerOutput},
	{"streaming", (*bench).streaming},
}

func names() (all []string) {
	for _, m := range measurements {
		all = append(all, m.name)
	}
	return all
}

// open starts all that a run needs. The namespaces take it along when they end.
func open(ctx context.Context, o options) (*bench, error) {
	dir := os.Getenv(dirVariable)
	if err := startRegistry(ctx, o, dir); err != nil {
		return nil, err
	}
	oci, err := o.findRuntime(os.Getenv(runtimeVariable))
	if err != nil {
		return nil, err
	}
	b := &bench{options: o, oci: oci, image: registryHost + "/bench/busybox:1", lines: filepath.Join(dir, "lines")}
	pause := registryHost + "/bench/pause:1"
	for _, image := range [][]string{{b.image}, {"-program", filepath.Join(o.tools, "pause"), pause}} {
		if out, err := exec.CommandContext(ctx, filepath.Join(o.tools, "mkimage"), image...).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("make image: %w: %s", err, out)
		}
	}
	line := strings.Repeat("x", lineLength-1) + "\n"
	if err := write(b.lines, strings.Repeat(line, linesSize/lineLength)); err != nil {
		return nil, err
	}
	if b.sides[0], err = berth(o, oci, dir); err != nil {
		return nil, err
	}
	if b.sides[1], err = containerd(o, oci, dir, pause); err != nil {
		return nil, err
	}
	for i, s := range b.sides {
		b.table.sides[i] = s.name
		if err := b.prepare(ctx, i); err != nil {
			return nil, fmt.Errorf("%w\n%s", err, s.lastWords())
		}
	}
	return b, nil
}

// prepare starts one side and has it do everything once: what it reads, pulls and
// makes for its first pod is not measured.
func (b *bench) prepare(ctx context.Context, side int) error {
	s := b.sides[side]
	for _, program := range s.programs {
		// Around each page of it that is touched, the kernel maps what else is in memory.
		if _, err := os.ReadFile(program); err != nil {
			return err
		}
	}
	if _, err := s.start(ctx); err != nil {
		return err
	}
	version, err := s.Version(ctx, &runtimeapi.VersionRequest{})
	if err != nil {
		return err
	}
	b.versions[side] = s.name + " " + version.GetRuntimeVersion()
	if err := s.pull(ctx, b.image); err != nil {
		return fmt.Errorf("pull %s: %w", b.image, err)
	}
	p, err := s.newPod(b.image, rest, runtimeapi.NamespaceMode_POD)
	if err != nil {
		return err
	}
	_, err = s.cycle(ctx, p, execSync)
	return err
}

// measure ends with the first error, or with ctx.
func (b *bench) measure(ctx context.Context) error {
	for _, m := range measurements {
		if !slices.Contains(b.only, m.name) {
			continue
		}
		begin := time.Now()
		if err := m.of(b, ctx); err != nil {
			if ctx.Err() != nil {
				return fmt.Errorf("measuring %s was interrupted", m.name)
			}
			return fmt.Errorf("measure %s: %w\n%s\n%s", m.name, err, b.sides[0].lastWords(), b.sides[1].lastWords())
		}
		fmt.Fprintf(os.Stderr, "bench: %s took %.0f s\n", m.name, time.Since(begin).Seconds())
	}
	return nil
}

// alternately does something for each side in turn; who begins changes each time.
func (b *bench) alternately(ctx context.Context, times int, do func(side int, s *side) error) error {
	for time := range times {
		for i := range b.sides {
			side := (time + i) % len(b.sides)
			if err := do(side, b.sides[side]); err != nil {
				return err
			}
			if err := pause(ctx, between); err != nil {
				return err
			}
		}
	}
	return nil
}

// between two things that are measured there is time for what the first has left
// to be done in the background.
const between = 200 * time.Millisecond

// pause is an error only if ctx ends.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// together calls do with 0 to n-1 at once and returns when all have returned.
func together(n int, do func(i int) error) error {
	errs := make(chan error, n)
	for i := range n {
		go func() { errs <- do(i) }()
	}
	var all error
	for range n {
		all = errors.Join(all, <-errs)
	}
	return all
}

// print writes what the run has found out, as Markdown.
func (b *bench) print(w io.Writer) error {
	kind, err := machine()
	if err != nil {
		return err
	}
	version, err := exec.Command(b.oci, "--version").Output()
	if err != nil {
		return fmt.Errorf("%s --version: %w", b.oci, err)
	}
	oci, _, _ := strings.Cut(string(version), "\n")
	if _, err := fmt.Fprintf(w, "%s against %s, with %s, on %s, %s:\n\n",
		b.versions[0], b.versions[1], oci, kind, time.Now().Format(time.DateOnly)); err != nil {
		return err
	}
	return b.table.writeMarkdown(w)
}
