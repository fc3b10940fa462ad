package leak

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// libexec is where hack/setup.sh puts what Berth runs.
const libexec = "/usr/local/libexec/berth"

// NeedRoot skips t unless it runs as root. With REQUIRE_ROOT=1 in the
// environment it fails t instead.
func NeedRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		missing(t, "needs root")
	}
}

// NeedTool returns the path of the first of the names that is installed: in
// Berth's libexec directory and its cni directory, among the tools built for the
// tests, or on PATH. Without any it skips t, or fails it with REQUIRE_ROOT=1.
func NeedTool(t testing.TB, names ...string) (path string) {
	t.Helper()
	dirs := []string{libexec, filepath.Join(libexec, "cni"), builtTools()}
	for _, name := range names {
		for _, dir := range dirs {
			path, err := exec.LookPath(filepath.Join(dir, name))
			if err == nil {
				return path
			}
		}
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	missing(t, "needs one of %q: run hack/setup.sh", names)
	return ""
}

// builtTools is build/tools of the source tree that the working directory is in.
func builtTools() string {
	dir, err := os.Getwd()
	for ; err == nil && dir != "/"; dir = filepath.Dir(dir) {
		tools := filepath.Join(dir, "build", "tools")
		if _, err := os.Stat(tools); err == nil {
			return tools
		}
	}
	return ""
}

func missing(t testing.TB, format string, args ...any) {
	t.Helper()
	end := t.Skipf
	if os.Getenv("REQUIRE_ROOT") == "1" {
		end = t.Fatalf
	}
	end(format, args...)
}

// NeedAppArmor skips t on a kernel without AppArmor. hack/vm.sh has one; there it
// fails t instead, by REQUIRE_VM=1 in the environment.
func NeedAppArmor(t testing.TB) {
	t.Helper()
	if enabled, _ := os.ReadFile("/sys/module/apparmor/parameters/enabled"); string(enabled) != "Y\n" {
		notHere(t, "this kernel has no AppArmor: hack/vm.sh has")
	}
}

// NeedSystemd is NeedAppArmor for systemd as the first process, with cgroup v2
// alone.
func NeedSystemd(t testing.TB) {
	t.Helper()
	_, err := os.Stat("/run/systemd/system")
	_, unified := os.Stat("/sys/fs/cgroup/cgroup.controllers")
	if err != nil || unified != nil {
		notHere(t, "this machine has no systemd with cgroup v2: hack/vm.sh has")
	}
}

func notHere(t testing.TB, reason string) {
	t.Helper()
	if os.Getenv("REQUIRE_VM") == "1" {
		t.Fatal(reason)
	}
	t.Skip(reason)
}
