package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"berth/test/leak"
)

var update = flag.Bool("update", false, "write the golden files of testdata anew")

func TestMain(m *testing.M) { leak.Main(m) }

// golden compares got with testdata/name.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s: got\n%s\nwant\n%s", name, got, want)
	}
}

// execute runs a command line and returns its output and what it ends with.
func execute(t *testing.T, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	var out, errOut bytes.Buffer
	cmd := command()
	cmd.SetOut(&out)
	cmd.SetErr(&errOut)
	cmd.SetArgs(args)
	err = cmd.ExecuteContext(t.Context())
	return out.String(), errOut.String(), err
}

func TestFlagsAndCommandsAreDocumented(t *testing.T) {
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		if cmd.Short == "" {
			t.Errorf("%s has no help", cmd.CommandPath())
		}
		cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if f.Usage == "" {
				t.Errorf("%s --%s has no help", cmd.CommandPath(), f.Name)
			}
		})
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
	}
	walk(command())
}

func TestHelp(t *testing.T) {
	for _, name := range []string{"", "run", "ps", "logs", "exec", "stop", "rm", "pull", "images", "status", "version"} {
		args := append(strings.Fields(name), "--help")
		out, _, err := execute(t, args...)
		if err != nil {
			t.Errorf("%v: %v", args, err)
		}
		golden(t, strings.Join(append([]string{"help"}, strings.Fields(name)...), "-")+".txt", out)
	}
}

func TestWrongCommandLinesExitWith2(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "none")
	for _, line := range []string{
		"frobnicate", "--frob", "ps x", "run", "run --frob busybox", "run --name A_B busybox", "run -p 80 busybox",
		"run -v data:/data busybox", "run -e =x busybox", "run --network none busybox", "run -d --rm busybox",
		"run --network host -p 1:1 busybox", "logs", "logs a b", "logs --tail x a", "exec a", "stop", "rm", "pull", "images a b",
		"status x", "version x",
	} {
		_, _, err := execute(t, append([]string{"--socket", socket}, strings.Fields(line)...)...)
		if usage := (usageError{}); !errors.As(err, &usage) {
			t.Errorf("berth %s: %v is no usage error", line, err)
		}
	}
}

func TestDaemonThatIsNotThere(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "berth.sock")
	_, _, err := execute(t, "ps", "--socket", socket)
	if err == nil || !strings.Contains(err.Error(), "berthd is not running: nobody answers on "+socket) {
		t.Errorf("got %v", err)
	}
}

func TestExitCode(t *testing.T) {
	for _, test := range []struct {
		err  error
		want int
	}{
		{nil, 0},
		{errors.New("broken"), 1},
		{status.Error(codes.NotFound, "gone"), 1},
		{usageError{errors.New("what?")}, 2},
		{codeError(3), 3},
		{fmt.Errorf("wrapped: %w", codeError(137)), 137},
	} {
		if got := exitCode(test.err); got != test.want {
			t.Errorf("exitCode(%v) = %d, want %d", test.err, got, test.want)
		}
	}
}

func TestMessageIsTheDaemonsOwn(t *testing.T) {
	if got := message(status.Error(codes.Unknown, "RegistryUnavailable: no route")); got != "RegistryUnavailable: no route" {
		t.Errorf("got %q", got)
	}
}
