package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/cri/admin"
	"berth/test/expect"
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

func TestFlagsAndCommandsAreDocumented(t *testing.T) { expect.Documented(t, command()) }

// Every field of -o json is described.
func TestFieldsAreDocumented(t *testing.T) {
	page, err := os.ReadFile("../../docs/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	var walk func(of reflect.Type)
	walk = func(of reflect.Type) {
		for of.Kind() == reflect.Pointer || of.Kind() == reflect.Slice {
			of = of.Elem()
		}
		if of.Kind() != reflect.Struct || of == reflect.TypeFor[time.Time]() {
			return
		}
		for field := range of.Fields() {
			name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
			if name == "" || !strings.Contains(string(page), "`"+name+"`") {
				t.Errorf("docs/cli.md does not describe %s of %s", name, of)
			}
			walk(field.Type)
		}
	}
	for _, report := range []any{containerReport{}, imageReport{}, statusReport{}, versionReport{}, inspectReport{}} {
		walk(reflect.TypeOf(report))
	}
}

func TestHelp(t *testing.T) {
	for _, name := range []string{
		"", "run", "ps", "logs", "exec", "attach", "stop", "rm", "pull", "images", "rmi", "inspect", "status", "version", "completion",
	} {
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
		"run --network host -p 1:1 busybox", "logs", "logs a b", "logs --tail x a", "logs --since x a", "exec a", "exec -t a sh", "exec -it a sh", "exec --timeout -1 a b",
		"attach", "attach a b", "stop", "stop -t -1 a", "rm", "pull", "images a b", "rmi", "inspect", "inspect --type x a", "inspect -o table a",
		"status x", "version x", "ps -o yaml", "ps -q -o json", "images -q -o json", "completion", "completion tcsh",
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
	if err == nil || !strings.Contains(err.Error(), "berthd does not answer at unix://"+socket+": is it running?") {
		t.Errorf("got %v", err)
	}
}

// What is missing is named, not counted.
func TestWrongArguments(t *testing.T) {
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"frob"}, "unknown command \"frob\" for \"berth\": see `berth --help`"},
		{[]string{"pull"}, "write `berth pull [flags] IMAGE`: see `berth pull --help`"},
		{[]string{"exec", "web"}, "write `berth exec [flags] NAME COMMAND [ARG…]`: see `berth exec --help`"},
		{[]string{"version", "x"}, "write `berth version [flags]`: see `berth version --help`"},
		{[]string{"completion", "tcsh"}, "write `berth completion bash|zsh|fish`: see `berth completion --help`"},
		{[]string{"ps", "--frob"}, "unknown flag: --frob: see `berth ps --help`"},
	} {
		_, _, err := execute(t, test.args...)
		if wrong := (usageError{}); !errors.As(err, &wrong) || err.Error() != test.want {
			t.Errorf("%v: %v, want %s", test.args, err, test.want)
		}
	}
}

func TestExitCode(t *testing.T) {
	ps, run := psCommand(), runCommand()
	missing, err := status.New(codes.Unknown, "no sh").WithDetails(wrapperspb.String(admin.NoProgram))
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		cmd  *cobra.Command
		err  error
		want int
		says string
	}{
		{ps, nil, 0, ""},
		{ps, errors.New("broken"), 1, "berth: broken\n"},
		{ps, errors.Join(errors.New("one"), errors.New("two")), 1, "berth: one\nberth: two\n"},
		{ps, status.Error(codes.NotFound, "gone"), 1, "berth: gone\n"},
		{ps, usageError{errors.New("what?")}, 2, "berth: what?\n"},
		{ps, interrupted{signal: syscall.SIGINT}, 130, ""},
		{ps, &os.PathError{Op: "write", Path: "/dev/stdout", Err: syscall.EPIPE}, 141, ""},
		{nil, errors.New("broken"), 1, "berth: broken\n"},
		{run, nil, 0, ""},
		{run, errors.New("broken"), 125, "berth: broken\n"},
		{run, usageError{errors.New("what?")}, 125, "berth: what?\n"},
		{run, errors.Join(notBegunError{status.Error(codes.Unknown, "no sh")}, nil), 126, "berth: no sh\n"},
		{run, errors.Join(notBegun(status.Error(codes.Unknown, "no sh")), nil), 126, "berth: no sh\n"},
		{run, errors.Join(notBegun(missing.Err()), nil), 127, "berth: no sh\n"},
		{run, status.Error(codes.NotFound, "gone"), 125, "berth: gone\n"},
		{run, unheardError{syscall.EPIPE}, 141, ""},
		{run, unheardError{syscall.ENOSPC}, 125, "berth: no space left on device\n"},
		{run, codeError(3), 3, ""},
		{run, interrupted{signal: syscall.SIGTERM}, 143, ""},
		{run, fmt.Errorf("wrapped: %w", codeError(137)), 137, ""},
	} {
		var says bytes.Buffer
		if got := exitCode(&says, test.cmd, test.err); got != test.want || says.String() != test.says {
			t.Errorf("exitCode(%v) = %d, saying %q; want %d, %q", test.err, got, says.String(), test.want, test.says)
		}
	}
}

// Guards against a shell's prompt behind the ^C that the terminal shows.
func TestInterruptEndsTheLine(t *testing.T) {
	p := newPty(t)
	if code := exitCode(p.slave, pullCommand(), interrupted{signal: syscall.SIGINT}); code != 130 {
		t.Errorf("exit code %d", code)
	}
	p.see(t, "\n")
}

// Nothing that was not written passes for done.
func TestListsThatCannotBeWritten(t *testing.T) {
	d := startDaemon(t, &daemon{images: []*runtimeapi.Image{{Id: "sha256:" + hexID("1a")}}})
	for _, args := range [][]string{{"images"}, {"images", "-q"}, {"images", "-o", "json"}, {"ps"}, {"version"}} {
		s := d.start(t, nil, failingWriter{}, args...)
		if err := <-s.done; !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("%v ended with %v", args, err)
		}
	}
}

type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, syscall.ENOSPC }

// What a signal has ended is told by the exit code alone; what was found out
// before it is told still.
func TestEndedBySignal(t *testing.T) {
	ctx, cancel := context.WithCancelCause(context.Background())
	canceled, broken := status.Error(codes.Canceled, "context canceled"), errors.New("broken")
	if err := ended(ctx, canceled); !errors.Is(err, canceled) {
		t.Errorf("before a signal: %v", err)
	}
	cancel(interrupted{signal: syscall.SIGINT})
	for _, test := range []struct{ err, want error }{
		{nil, nil}, {canceled, interrupted{signal: syscall.SIGINT}}, {context.Canceled, interrupted{signal: syscall.SIGINT}},
		{broken, broken}, {codeError(7), codeError(7)},
	} {
		if err := ended(ctx, test.err); !errors.Is(err, test.want) {
			t.Errorf("%v became %v, want %v", test.err, err, test.want)
		}
	}
}

func TestUntilSignal(t *testing.T) {
	ctx, stop := untilSignal(context.Background())
	defer stop()
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	<-ctx.Done()
	if signal := (interrupted{}); !errors.As(context.Cause(ctx), &signal) || signal.signal != syscall.SIGHUP {
		t.Errorf("ended by %v", context.Cause(ctx))
	}
}

func TestMessageIsForPeople(t *testing.T) {
	for _, test := range []struct {
		err  error
		want string // a part
	}{
		{status.Error(codes.Unknown, "RegistryUnavailable: no route"), "RegistryUnavailable: no route"},
		{fmt.Errorf("wrapped: %w", status.Error(codes.NotFound, "no pod")), "no pod"},
		{status.Error(codes.Unavailable, "error reading from server: EOF"), "berthd has ended or was restarted meanwhile: try again"},
		{status.Error(codes.Unimplemented, "unknown method"), "compare them with `berth version`"},
		{errors.New("plain"), "plain"},
	} {
		if got := message(test.err); !strings.Contains(got, test.want) || strings.Contains(got, "rpc error") || strings.Contains(got, "code =") {
			t.Errorf("%v: %q", test.err, got)
		}
	}
}
