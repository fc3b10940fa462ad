package main

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// The program runs as three processes, told apart by the names that they are
// started by: the user's; the first process of namespaces made by that one; and
// the one that measures.
const (
	firstName   = "bench-first"
	measureName = "bench-measure"

	// cniState is where libcni and the plugins write, whoever calls them.
	cniState = "/var/lib/cni"

	// What tells a run's processes which one it is.
	dirVariable     = "BENCH_DIR"     // the directory of all that the run writes
	runtimeVariable = "BENCH_RUNTIME" // the name of its OCI runtime
)

// keepApart makes a run: it starts the first process and waits for it. All that the run
// makes lives in its namespaces, so it is gone when that process is, whatever
// happens; what has a name outside of them is removed here.
func keepApart(oci string) (err error) {
	// The death signal belongs to the thread that has started the child.
	runtime.LockOSThread()
	if os.Geteuid() != 0 {
		return errors.New("pods need root")
	}
	dir, err := os.MkdirTemp("/var/tmp", "berth-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if os.Mkdir(cniState, 0o755) == nil {
		defer os.Remove(cniState)
	}
	hierarchies, err := cgroupMounts()
	if err != nil {
		return err
	}
	for _, h := range hierarchies {
		own := h.within(dir)
		defer func() { err = errors.Join(err, removeCgroup(own)) }()
		if err := makeCgroup(own); err != nil {
			return err
		}
	}

	// A signal of the terminal reaches the process that measures as well, which
	// then ends on its own. The second one ends it.
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = firstName
	cmd.Env = append(os.Environ(), dirVariable+"="+dir, runtimeVariable+"="+oci)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC,
		Pdeathsig:  syscall.SIGKILL,
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for asked := false; ; asked = true {
		select {
		case s := <-signals:
			if asked {
				s = syscall.SIGKILL
			}
			if err := cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
				return err
			}
		case err := <-ended:
			return err
		}
	}
}

// first is the first process of the namespaces: it makes a machine of them, starts
// the process that measures, and reaps what daemons leave behind.
func first() (code int, err error) {
	dir := os.Getenv(dirVariable)
	if err := makeMachine(dir); err != nil {
		return 1, err
	}
	// Nobody but a handler keeps these from ending us, and an ignored signal would
	// stay ignored in all that we start.
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	measure, err := os.StartProcess("/proc/self/exe", append([]string{measureName}, os.Args[1:]...),
		&os.ProcAttr{Files: []*os.File{os.Stdin, os.Stdout, os.Stderr}})
	if err != nil {
		return 1, err
	}
	pid := measure.Pid
	go func() {
		for s := range signals {
			_ = measure.Signal(s)
		}
	}()
	for {
		var status syscall.WaitStatus
		switch reaped, err := syscall.Wait4(-1, &status, 0, nil); {
		case err != nil && !errors.Is(err, syscall.EINTR):
			return 1, fmt.Errorf("wait for the process that measures: %w", err)
		case reaped == pid && status.Exited():
			return status.ExitStatus(), nil
		case reaped == pid:
			return 1, fmt.Errorf("the process that measures ended by %v", status.Signal())
		}
	}
}

// makeMachine makes a machine of new namespaces: mounts propagate as under systemd,
// /run is empty and in memory, the cgroups are those of the run, the CNI plugins'
// state is in dir, and there is a loopback interface.
func makeMachine(dir string) error {
	hierarchies, err := cgroupMounts()
	if err != nil {
		return err
	}
	for _, h := range hierarchies {
		if err := os.WriteFile(filepath.Join(h.within(dir), "cgroup.procs"), []byte("0"), 0); err != nil {
			return fmt.Errorf("enter cgroup: %w", err)
		}
	}
	// A namespace of one thread: children are started from it alone.
	runtime.LockOSThread()
	if err := syscall.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("make cgroup namespace: %w", err)
	}
	if err := syscall.Mount("", "/", "", syscall.MS_PRIVATE|syscall.MS_REC, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	for _, h := range hierarchies {
		if err := h.remount(); err != nil {
			return err
		}
	}
	cni := filepath.Join(dir, "cni-state")
	if err := os.Mkdir(cni, 0o755); err != nil {
		return err
	}
	for _, m := range []struct {
		source, target, kind string
		flags                uintptr
	}{
		{"proc", "/proc", "proc", 0},
		{"tmpfs", "/run", "tmpfs", 0},
		{cni, cniState, "", syscall.MS_BIND},
	} {
		if err := syscall.Mount(m.source, m.target, m.kind, m.flags, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	if err := syscall.Mount("", "/", "", syscall.MS_SHARED|syscall.MS_REC, ""); err != nil {
		return fmt.Errorf("make mounts shared: %w", err)
	}
	return ip("link", "set", "lo", "up")
}

func ip(args ...string) error {
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

// hierarchy is one mounted cgroup file system.
type hierarchy struct {
	point   string
	version int
	options string // of v1: what tells it from others
}

// within is the cgroup of the run in dir.
func (h hierarchy) within(dir string) string { return filepath.Join(h.point, filepath.Base(dir)) }

func cgroupMounts() ([]hierarchy, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var all []hierarchy
	for lines := bufio.NewScanner(f); lines.Scan(); {
		mount, super, _ := strings.Cut(lines.Text(), " - ")
		fields, kind := strings.Fields(mount), strings.Fields(super)
		if len(fields) < 5 || len(kind) < 3 || !strings.HasPrefix(kind[0], "cgroup") {
			continue
		}
		h := hierarchy{point: fields[4], version: 2}
		if kind[0] == "cgroup" {
			h.version = 1
			h.options = strings.Join(slices.DeleteFunc(strings.Split(kind[2], ","), func(o string) bool {
				name, _, _ := strings.Cut(o, "=")
				return slices.Contains([]string{"rw", "ro", "xattr", "release_agent", "clone_children"}, name)
			}), ",")
		}
		if !slices.ContainsFunc(all, func(other hierarchy) bool { return other.point == h.point }) {
			all = append(all, h)
		}
	}
	if len(all) == 0 {
		return nil, errors.New("no cgroups are mounted")
	}
	return all, nil
}

// remount shows the run's own cgroup as the root of the hierarchy. A cgroup of
// version 2 gives controllers to its children only while it has no processes.
func (h hierarchy) remount() error {
	if err := syscall.Unmount(h.point, syscall.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount %s: %w", h.point, err)
	}
	if h.version == 1 {
		if err := syscall.Mount("cgroup", h.point, "cgroup", 0, h.options); err != nil {
			return fmt.Errorf("mount %s: %w", h.point, err)
		}
		return nil
	}
	if err := syscall.Mount("cgroup", h.point, "cgroup2", 0, ""); err != nil {
		return fmt.Errorf("mount %s: %w", h.point, err)
	}
	leaf := filepath.Join(h.point, "bench")
	if err := os.Mkdir(leaf, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(leaf, "cgroup.procs"), []byte("0"), 0); err != nil {
		return fmt.Errorf("enter cgroup: %w", err)
	}
	controllers, err := os.ReadFile(filepath.Join(h.point, "cgroup.controllers"))
	if err != nil {
		return err
	}
	for _, controller := range strings.Fields(string(controllers)) {
		if err := os.WriteFile(filepath.Join(h.point, "cgroup.subtree_control"), []byte("+"+controller), 0); err != nil {
			return fmt.Errorf("give cgroups the controller %s: %w", controller, err)
		}
	}
	return nil
}

// makeCgroup makes a cgroup that processes can enter: one of cpuset v1 has no CPU
// and no memory at first.
func makeCgroup(dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
		value, err := os.ReadFile(filepath.Join(filepath.Dir(dir), name))
		if errors.Is(err, fs.ErrNotExist) || len(value) <= 1 {
			continue
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), value, 0)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// removeCgroup removes a cgroup with all below it, whose processes are gone.
func removeCgroup(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		if e.IsDir() {
			err = errors.Join(err, removeCgroup(filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(err, syscall.Rmdir(dir))
}
