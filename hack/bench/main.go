package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// options are the command line.
type options struct {
	runtimes []string // each is a run
	only     []string // measurements
	n        int
	pods     int
	rounds   int
	output   int // MB

	bin, tools, libexec string // absolute
}

func parseOptions() (options, error) {
	var o options
	runtimes := flag.String("runtime", "runc,crun", "OCI runtimes, a run for each")
	only := flag.String("only", strings.Join(names(), ","), "what to measure")
	flag.IntVar(&o.n, "n", 50, "pods that are started and removed one by one, for each side and network")
	flag.IntVar(&o.pods, "pods", 100, "pods of a full node")
	flag.IntVar(&o.rounds, "rounds", 2, "how often all else is measured, for each side")
	flag.IntVar(&o.output, "output", 500, "output of a container, in MB")
	flag.StringVar(&o.bin, "bin", "bin", "`directory` of Berth's programs")
	flag.StringVar(&o.tools, "tools", "build/tools", "`directory` of containerd's programs and the registry")
	flag.StringVar(&o.libexec, "libexec", "/usr/local/libexec/berth", "`directory` of runc and the CNI plugins")
	flag.Parse()
	o.runtimes, o.only = strings.Split(*runtimes, ","), strings.Split(*only, ",")
	for _, name := range o.only {
		if !slices.Contains(names(), name) {
			return o, fmt.Errorf("-only %s: there is no such measurement", name)
		}
	}
	for _, name := range o.runtimes {
		if _, err := o.findRuntime(name); err != nil {
			return o, fmt.Errorf("-runtime %s: %w", name, err)
		}
	}
	if o.n < 1 || o.pods < 1 || o.rounds < 1 || o.output < 1 {
		return o, errors.New("-n, -pods, -rounds and -output are at least 1")
	}
	for _, dir := range []*string{&o.bin, &o.tools, &o.libexec} {
		abs, err := filepath.Abs(*dir)
		if err != nil {
			return o, err
		}
		*dir = abs
	}
	return o, nil
}

// findRuntime is the path of an OCI runtime.
func (o options) findRuntime(name string) (string, error) {
	path := filepath.Join(o.libexec, name)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	return exec.LookPath(name)
}

// plugins is where the CNI plugins are.
func (o options) plugins() string { return filepath.Join(o.libexec, "cni") }

func main() {
	o, err := parseOptions()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(2)
	}
	code := 0
	switch os.Args[0] {
	case firstName:
		code, err = first()
	case measureName:
		err = run(o)
	default:
		for _, runtime := range o.runtimes {
			if err = keepApart(runtime); err != nil {
				break
			}
		}
	}
	if err != nil {
		code = 1
	}
	// A process of the run has said itself why it ended.
	if ended := (*exec.ExitError)(nil); err != nil && !errors.As(err, &ended) {
		fmt.Fprintln(os.Stderr, "bench:", err)
	}
	os.Exit(code)
}

// run prints the table also of what was measured before an error or a signal.
func run(o options) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	b, err := open(ctx, o)
	if err != nil {
		return err
	}
	err = b.measure(ctx)
	return errors.Join(err, b.print(os.Stdout))
}
