package oci

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// What a program inherits by fork and execve: all of it is set on purpose, and
// read back here from inside.

// Names by which the test binary is another program.
const (
	hostileName   = "berth-hostile"    // a keeper that has inherited what is odd
	inheritedName = "/berth-inherited" // in a container: prints what it has inherited
)

// beHostile makes odd what the shell cannot, and becomes the keeper.
func beHostile() error {
	runtime.LockOSThread()
	oneCPU := unix.NewCPUSet(1)
	oneCPU.Set(0)
	_, keyErr := unix.KeyctlJoinSessionKeyring(hostileName)
	if err := errors.Join(
		unix.SchedSetaffinityDynamic(0, oneCPU),
		unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_BATCH, Nice: 5}, 0),
		systemCall(unix.SYS_IOPRIO_SET, 1, 0, 3<<13), // idle
		unix.Prctl(unix.PR_SET_TIMERSLACK, 7_000_000, 0, 0, 0),
		unix.Prctl(unix.PR_SET_SECUREBITS, 1<<2, 0, 0, 0), // SECBIT_NO_SETUID_FIXUP
		unix.Prctl(unix.PR_SET_THP_DISABLE, 1, 0, 0, 0),
		unix.Prctl(unix.PR_MCE_KILL, unix.PR_MCE_KILL_SET, unix.PR_MCE_KILL_EARLY, 0, 0),
		unix.SetMemPolicyDynamic(unix.MPOL_INTERLEAVE, oneCPU),
		systemCall(unix.SYS_PERSONALITY, 0x0040000, 0, 0), // ADDR_NO_RANDOMIZE
		os.WriteFile("/proc/self/coredump_filter", []byte("0x7f"), 0),
		keyErr,
	); err != nil {
		return err
	}
	for resource := range len(resources) {
		var l unix.Rlimit
		if err := unix.Getrlimit(resource, &l); err != nil {
			return err
		}
		l.Cur = min(l.Max-min(l.Max, 1), 1<<40) // odd, and enough to live with
		if resource == unix.RLIMIT_STACK {
			l.Cur = 16 << 20 // of each thread, in libc
		}
		if err := unix.Setrlimit(resource, &l); err != nil {
			return err
		}
	}
	var all []os.Signal
	var mask unix.Sigset_t
	for s := syscall.Signal(1); s <= 64; s++ {
		if s != syscall.SIGCHLD { // ignored, it would reap
			all = append(all, s)
			mask.Val[0] |= 1 << (s - 1)
		}
	}
	signal.Ignore(all...)
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &mask, nil); err != nil {
		return err
	}
	return syscall.Exec("/proc/self/exe", append([]string{"berth-keeper"}, os.Args[1:]...), os.Environ())
}

func systemCall(number, a, b, c uintptr) error {
	if _, _, errno := unix.Syscall(number, a, b, c); errno != 0 {
		return errno
	}
	return nil
}

// printInherited prints a line for each thing that the shell cannot read.
func printInherited() {
	runtime.LockOSThread()
	for resource := range len(resources) {
		var l unix.Rlimit
		err := unix.Getrlimit(resource, &l)
		fmt.Println(limitLine(resource, l.Cur, l.Max), err)
	}
	attr, err := unix.SchedGetAttr(0, 0)
	fmt.Println("class", attr.Policy, "flags", attr.Flags, "nice", attr.Nice, err)
	ioprio, _, errno := unix.Syscall(unix.SYS_IOPRIO_GET, 1, 0, 0)
	fmt.Println("ioprio", ioprio, errno)
	persona, _, errno := unix.Syscall(unix.SYS_PERSONALITY, 0xffffffff, 0, 0)
	fmt.Println("personality", persona, errno)
	var policy int32
	_, _, errno = unix.Syscall6(unix.SYS_GET_MEMPOLICY, uintptr(unsafe.Pointer(&policy)), 0, 0, 0, 0, 0)
	fmt.Println("memory policy", policy, errno)
	for _, p := range []struct {
		name   string
		option int
	}{
		{"timer slack", unix.PR_GET_TIMERSLACK}, {"securebits", unix.PR_GET_SECUREBITS},
		{"no huge pages", unix.PR_GET_THP_DISABLE}, {"memory errors", unix.PR_MCE_KILL_GET},
	} {
		value, err := unix.PrctlRetInt(p.option, 0, 0, 0, 0)
		fmt.Println(p.name, value, err)
	}
	cpus := unix.NewCPUSet(8192)
	err = unix.SchedGetaffinityDynamic(0, cpus)
	fmt.Println("CPUs", cpus.Count(), err)
	keyring, _ := unix.KeyctlString(unix.KEYCTL_DESCRIBE, unix.KEY_SPEC_SESSION_KEYRING)
	fmt.Println("hostile keyring", strings.HasSuffix(keyring, ";"+hostileName))
}

func limitLine(resource int, soft, hard uint64) string {
	return fmt.Sprintf("limit %d: %d %d", resource, int64(soft), int64(hard))
}

// Guards against what runtimes, and through them containers and execs, inherit
// from whoever started berthd: an environment (NOTIFY_SOCKET makes `crun run
// --detach` wait for the container's whole life), ignored and blocked signals (who
// ignores INT is not stopped by it), limits, priorities, open files and more.
func TestNothingOfTheKeeperIsInherited(t *testing.T) {
	const script = `tr '\0' '\n' </proc/self/environ; umask
		cat /proc/self/oom_score_adj /proc/self/coredump_filter
		grep -E '^Sig(Blk|Ign)' /proc/self/status
		(cd /proc/self/fd; echo *)
		` + inheritedName + `
		cat /proc/self/cgroup`
	hostile := filepath.Join(t.TempDir(), "berth-keeper")
	if err := os.WriteFile(hostile, []byte(`#!/bin/bash
		export NOTIFY_SOCKET=/run/nobody SECRET=hunter2
		umask 077
		echo 500 >/proc/self/oom_score_adj
		exec 7</etc/passwd
		exec -a `+hostileName+" "+self(t)+` "$@"`), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"runc", "crun"} {
		t.Run(name, func(t *testing.T) {
			n := newNodeWith(t, hostile)
			checkHostile(t, n)
			c := n.container(n.runtime(name), script+"; sleep 1000")
			c.spec.Process.Rlimits = Rlimits(1000)
			for to, from := range map[string]string{inheritedName: self(t), "/lib": "/lib", "/lib64": "/lib64", "/usr/lib": "/usr/lib"} {
				c.spec.Mounts = append(c.spec.Mounts, specs.Mount{
					Destination: to, Source: from, Type: "bind", Options: []string{"bind", "ro"},
				})
			}
			pid := c.start()
			want := wantInherited(t, c, pid)
			c.awaitOutput("0::/")
			out, _ := c.output()
			compareLines(t, "in the container", out, want)
			for range 10 { // some come through in a race
				_, out, _, err := c.exec(script)
				if err != nil {
					t.Fatal(err)
				}
				compareLines(t, "in an exec", out, want)
			}
		})
	}
}

// wantInherited is what the first process of the container c, pid, and all execs
// in it have to find.
func wantInherited(t *testing.T, c *container, pid int) string {
	t.Helper()
	// The runtimes add HOME; 3 is the directory that the shell reads.
	want := "PATH=/bin\nHOME=/\n0022\n0\n00000033\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n0 1 2 3\n"
	limits := make(map[int]string)
	for _, l := range c.spec.Process.Rlimits {
		limits[resources[l.Type]] = limitLine(resources[l.Type], l.Soft, l.Hard)
	}
	for resource := range len(resources) {
		want += limits[resource] + " <nil>\n"
	}
	want += "class 0 flags 0 nice 0 <nil>\nioprio 0 errno 0\npersonality 0 errno 0\nmemory policy 0 errno 0\n" +
		"timer slack 50000 <nil>\nsecurebits 0 <nil>\nno huge pages 0 <nil>\nmemory errors 2 <nil>\n" +
		fmt.Sprintf("CPUs %d <nil>\nhostile keyring false\n", runtime.NumCPU())
	cgroups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		t.Fatal(err)
	}
	return want + string(cgroups)
}

// compareLines reports the lines of got that are not want's.
func compareLines(t *testing.T, where, got, want string) {
	t.Helper()
	gots, wants := strings.Split(got, "\n"), strings.Split(want, "\n")
	if len(gots) != len(wants) {
		t.Errorf("%s:\n%s\nwant:\n%s", where, got, want)
		return
	}
	for i, line := range gots {
		if line != wants[i] {
			t.Errorf("%s: %q, want %q", where, line, wants[i])
		}
	}
}

// checkHostile fails the test if the keeper has inherited nothing odd, or has
// passed a file on to the runner.
func checkHostile(t *testing.T, n *node) {
	t.Helper()
	h := n.hello()
	if b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", h.Pid)); string(b) != "500\n" {
		t.Fatalf("the keeper is not hostile: oom_score_adj %q", b)
	}
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", h.Runner))
	if err != nil || len(files) == 0 {
		t.Fatalf("the runner's files: %v, %v", files, err)
	}
	for _, f := range files {
		if target, _ := os.Readlink(f); target == "/etc/passwd" {
			t.Errorf("the runner has %s open", target)
		}
	}
}

// Guards against a program whose signals are fatal until it says otherwise: that of
// an upgraded keeper. The runtimes that it starts know nothing of what it ignored.
func TestSignalsDuringAnUpgrade(t *testing.T) {
	n := newNode(t)
	r := n.runtime("runc")
	c := n.container(r, "sleep 1000")
	c.start()
	before := n.hello()
	slow := filepath.Join(t.TempDir(), "berth-keeper")
	if err := os.WriteFile(slow, []byte(`#!/bin/sh
		for signal in HUP INT TSTP TTIN TTOU; do kill -$signal $$; done
		exec `+self(t)+` "$@"`), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := n.keeper.Upgrade(n.ctx, slow); err != nil {
		t.Fatal(err)
	}
	if now := n.hello(); now.Pid != before.Pid || now.Instance != before.Instance {
		t.Errorf("keeper %d %s, before %d %s", now.Pid, now.Instance, before.Pid, before.Instance)
	}
	const script = "exec grep -E '^Sig(Blk|Ign)' /proc/self/status"
	_, out, _, err := c.exec(script)
	if err != nil {
		t.Fatal(err)
	}
	compareLines(t, "in an exec", out, "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n")
}
