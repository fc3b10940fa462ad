package oci

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"berth/oci/cgroup"

	"berth/oci/keeper"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// scriptHead reads an OCI runtime's command line.
const scriptHead = `#!/bin/sh
while [ $# -gt 1 ]; do
	case $1 in
	--pid-file) export pid_file=$2 ;;
	esac
	shift
done
export id=$1 here=${0%/*} cgroup=@CGROUP@/$1
# container COMMAND starts that in the container's cgroup, as the child $!. It
# must not end while this shell, $$ for it too, lives: that would reap it.
container() {
	mkdir -p $cgroup
	mkfifo $here/entered
	(echo 0 >$cgroup/cgroup.procs; echo >$here/entered; eval "$1") &
	read x <$here/entered
}
`

// script makes an OCI runtime of a shell script, for what real ones do too
// seldom to wait for it. The script finds $pid_file, $id, $cgroup, a shell
// function "container", which scripts that it runs can source as $here/head,
// and the named flags.
func (n *node) script(body string, flags ...string) (*Runtime, map[string]*flag) {
	n.t.Helper()
	dir := n.t.TempDir()
	head := strings.ReplaceAll(scriptHead, "@CGROUP@", anyHierarchy()+CgroupRoot)
	path := filepath.Join(dir, "runtime")
	for name, text := range map[string]string{
		"runtime": head + body,
		"head":    head[strings.Index(head, "# container"):],
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			n.t.Fatal(err)
		}
	}
	made := make(map[string]*flag)
	for _, name := range flags {
		made[name] = newFlag(n.t, filepath.Join(dir, name))
	}
	r := &Runtime{Name: "script", Path: path, Run: n.run, Keeper: n.keeper, Timeout: time.Minute, OCIVersion: specs.Version}
	return r, made
}

// anyHierarchy is a mounted cgroup hierarchy.
func anyHierarchy() string {
	if root := cgroup.Unified(); root != "" {
		return root
	}
	return "/sys/fs/cgroup/pids"
}

// flag is a FIFO by which a test and a script wait for each other: one raises
// it, `echo >$here/NAME` in the script, and the other waits, `read x <$here/NAME`.
type flag struct {
	t    *testing.T
	file *os.File
}

func newFlag(t *testing.T, path string) *flag {
	t.Helper()
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return &flag{t, f}
}

func (f *flag) raise() {
	f.t.Helper()
	if _, err := f.file.Write([]byte("\n")); err != nil {
		f.t.Fatal(err)
	}
}

func (f *flag) await() {
	f.t.Helper()
	_ = f.file.SetReadDeadline(time.Now().Add(patience))
	if _, err := f.file.Read(make([]byte, 1)); err != nil {
		f.t.Fatalf("wait for %s: %v", filepath.Base(f.file.Name()), err)
	}
}

// patience is how long a test waits for what has to come.
const patience = 30 * time.Second

// await looks again and again, for what the kernel tells in no other way.
func await(t *testing.T, what string, look func() bool) {
	t.Helper()
	deadline := time.After(patience)
	again := time.NewTicker(2 * time.Millisecond)
	defer again.Stop()
	for !look() {
		select {
		case <-again.C:
		case <-deadline:
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// process is what /proc tells of one; the zero value is no process.
type process struct {
	pid, parent int
	state       string
	args        string
}

func (p process) String() string { return fmt.Sprintf("%d %s %q", p.pid, p.state, p.args) }

func lookAt(pid int) process {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return process{}
	}
	p := process{pid: pid}
	rest := string(b)[strings.LastIndexByte(string(b), ')')+2:]
	if _, err := fmt.Sscan(rest, &p.state, &p.parent); err != nil {
		return process{}
	}
	b, _ = os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	p.args = strings.TrimSpace(strings.ReplaceAll(string(b), "\x00", " "))
	return p
}

// below lists the descendants of pid, zombies included.
func below(pid int) []process {
	var found []process
	for queue := []int{pid}; len(queue) > 0; queue = queue[1:] {
		for _, child := range keeper.Children(queue[0]) {
			found = append(found, lookAt(child))
			queue = append(queue, child)
		}
	}
	return found
}

// awaitIdle waits until the keeper has no descendant but its runner.
func (n *node) awaitIdle() {
	n.t.Helper()
	h := n.hello()
	var left []process
	defer func() {
		if n.t.Failed() {
			n.t.Logf("left below the keeper (runner: %d): %v", h.Runner, left)
		}
	}()
	await(n.t, "no process but the runner is left", func() bool {
		left = below(h.Pid)
		return len(left) == 1 && left[0].pid == h.Runner
	})
}

func readInt(t *testing.T, path string) int {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	i, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	return i
}
