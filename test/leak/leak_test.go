package leak

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// leaker in the environment makes this binary leave that behind. The slow ones
// leave only what goes within the grace.
const (
	leaker   = "BERTH_LEAKER"
	leakTest = "berth-leak-test" // name of what leakers make, removed by the test
)

var leakers = map[string]func() error{
	"nothing":   func() error { return nil },
	"goroutine": func() error { go func() { select {} }(); return nil },
	"signal":    func() error { forwardSignals(os.Getpid())(); return nil },
	"slow goroutine": func() error {
		go func() { <-time.After(100 * time.Millisecond) }()
		return nil
	},
	"file": func() error {
		_, err := syscall.Open("/dev/null", syscall.O_RDONLY, 0)
		return err
	},
	"mount": func() error {
		return syscall.Mount(leakTest, os.Getenv("DIR"), "tmpfs", 0, "")
	},
	"netns": func() error {
		return os.WriteFile("/run/netns/"+leakTest, nil, 0)
	},
	"cgroup": func() error {
		return os.MkdirAll(filepath.Join(os.Getenv("DIR"), leakTest, "below"), 0o755)
	},
	"process": func() error { return exec.Command("sleep", "1h").Start() },
	"zombie":  func() error { return exec.Command("true").Start() },
	"orphan": func() error {
		return exec.Command("sh", "-c", "sleep 1h >/dev/null 2>&1 &").Run()
	},
	"slow orphan": func() error {
		return exec.Command("sh", "-c", "sleep 0.1 >/dev/null 2>&1 &").Run()
	},
	"failure": func() error { return errors.New("a test failed") },
	"murder":  func() error { return syscall.Kill(os.Getpid(), syscall.SIGKILL) },
}

func TestMain(m *testing.M) {
	what := os.Getenv(leaker)
	leak, played := leakers[what]
	if !played {
		Main(m)
	}
	if !strings.HasPrefix(what, "slow ") {
		grace = 50 * time.Millisecond
	}
	if os.Getenv("UNDER_REAPER") == "1" {
		os.Unsetenv("UNDER_REAPER")
		code, err := reap(os.Args, os.Environ())
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(code)
	}
	os.Exit(check(func() int {
		if err := leak(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 3
		}
		return 0
	}))
}

// run leaks what in another process and returns its exit code and output.
func run(t *testing.T, what string, env ...string) (code int, output string) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(append(os.Environ(), leaker+"="+what), env...)
	out, err := cmd.CombinedOutput()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), string(out)
}

func TestEachKindOfLeakIsNamed(t *testing.T) {
	for _, tt := range []struct {
		what string
		code int
		want string // a pattern of the whole output
	}{
		{"nothing", 0, `^$`},
		{"goroutine", 1, `^leak: goroutine \d+ \[select \(no cases\)\](?s:.)*leak_test\.go`},
		{"slow goroutine", 0, `^$`},
		{"signal", 0, `^$`},
		{"file", 1, `^leak: open file \d+ -> /dev/null\n$`},
		{"process", 1, `^leak: process \d+: sleep 1h\n$`},
		{"zombie", 1, `^leak: process \d+, not waited for: true\n$`},
		{"failure", 3, `^a test failed\n$`},
	} {
		t.Run(tt.what, func(t *testing.T) {
			code, out := run(t, tt.what)
			// os.Process holds a pidfd beside the process.
			out = regexp.MustCompile(`leak: open file \d+ -> anon_inode:\[pidfd\]\n`).ReplaceAllString(out, "")
			if code != tt.code || !regexp.MustCompile(tt.want).MatchString(out) {
				t.Errorf("exit code %d, want %d; output %q, want %s", code, tt.code, out, tt.want)
			}
		})
	}
}

func TestLeftMountIsNamed(t *testing.T) {
	NeedRoot(t)
	dir := t.TempDir()
	t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
	code, out := run(t, "mount", "DIR="+dir)
	want := fmt.Sprintf("leak: mount of %s (tmpfs) on %s\n", leakTest, dir)
	if code != 1 || out != want {
		t.Errorf("exit code %d, output %q, want %q", code, out, want)
	}
}

func TestLeftNetNamespaceIsNamed(t *testing.T) {
	NeedRoot(t)
	if err := os.MkdirAll("/run/netns", 0o755); err != nil {
		t.Fatal(err)
	}
	pin := "/run/netns/" + leakTest
	t.Cleanup(func() { os.Remove(pin) })
	code, out := run(t, "netns")
	if want := "leak: network namespace " + pin + "\n"; code != 1 || out != want {
		t.Errorf("exit code %d, output %q, want %q", code, out, want)
	}
}

func TestLeftCgroupIsNamedInEveryHierarchy(t *testing.T) {
	NeedRoot(t)
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	mounts := regexp.MustCompile(`(?m)^\S+ \S+ \S+ \S+ (\S+) .* - cgroup2? `).FindAllStringSubmatch(string(info), -1)
	if len(mounts) == 0 {
		t.Fatal("no cgroup hierarchy is mounted")
	}
	for _, m := range mounts {
		hierarchy := m[1]
		top := filepath.Join(hierarchy, leakTest)
		t.Cleanup(func() {
			os.Remove(filepath.Join(top, "below"))
			os.Remove(top)
		})
		code, out := run(t, "cgroup", "DIR="+hierarchy)
		want := fmt.Sprintf("leak: cgroup %s\nleak: cgroup %s/below\n", top, top)
		if code != 1 || out != want {
			t.Errorf("exit code %d, output %q, want %q", code, out, want)
		}
	}
}

func TestReaper(t *testing.T) {
	for _, tt := range []struct {
		what string
		code int
		want string
	}{
		{"nothing", 0, `^$`},
		{"failure", 3, `^a test failed\n$`},
		{"slow orphan", 0, `^$`},
		{"orphan", 1, `^leak: process \d+: sleep 1h\n$`},
		{"murder", 137, `^tests killed by killed\n$`},
	} {
		t.Run(tt.what, func(t *testing.T) {
			code, out := run(t, tt.what, "UNDER_REAPER=1")
			if code != tt.code || !regexp.MustCompile(tt.want).MatchString(out) {
				t.Errorf("exit code %d, want %d; output %q, want %s", code, tt.code, out, tt.want)
			}
		})
	}
}

// Whoever leaks processes must not leave them behind: go test would wait for
// its output to end, and the machine would fill up.
func TestLeftProcessesAreKilled(t *testing.T) {
	unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
	defer unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
	for what, env := range map[string]string{"process": "", "orphan": "UNDER_REAPER=1"} {
		_, out := run(t, what, env)
		pid := regexp.MustCompile(`process (\d+): sleep 1h`).FindStringSubmatch(out)
		if pid == nil {
			t.Fatalf("%s: no process in the output %q", what, out)
		}
		reapOrphans(t)
		if _, err := os.Stat("/proc/" + pid[1]); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: process %s lives on", what, pid[1])
		}
	}
}

// reapOrphans waits for every child: the leaker has just killed them.
func reapOrphans(t *testing.T) {
	t.Helper()
	for {
		if _, err := syscall.Wait4(-1, nil, 0, nil); errors.Is(err, syscall.ECHILD) {
			return
		} else if err != nil && !errors.Is(err, syscall.EINTR) {
			t.Fatal(err)
		}
	}
}

// fake is a test that notes how it ended. Its Fatalf and Skipf return, so what
// NeedTool then returns is not looked at.
type fake struct {
	testing.TB
	end string
}

func (f *fake) Helper()                           {}
func (f *fake) Fatalf(format string, args ...any) { f.end = "fatal: " + fmt.Sprintf(format, args...) }
func (f *fake) Skipf(format string, args ...any)  { f.end = "skip: " + fmt.Sprintf(format, args...) }

func TestNeedTool(t *testing.T) {
	for _, tt := range []struct {
		names   []string
		require string
		path    string
		end     string
	}{
		{[]string{"sh"}, "0", "/sh", ""},
		{[]string{"berth-no-such-tool", "sh"}, "1", "/sh", ""},
		{[]string{"berth-no-such-tool"}, "0", "", "skip: needs one of"},
		{[]string{"berth-no-such-tool"}, "1", "", "fatal: needs one of"},
	} {
		t.Setenv("REQUIRE_ROOT", tt.require)
		f := &fake{}
		path := NeedTool(f, tt.names...)
		if !strings.HasSuffix(path, tt.path) || (path == "") != (tt.path == "") || !strings.HasPrefix(f.end, tt.end) {
			t.Errorf("NeedTool(%q) with REQUIRE_ROOT=%s = %q, %q", tt.names, tt.require, path, f.end)
		}
	}
}
