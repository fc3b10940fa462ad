package oci

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"berth/oci/cgroup"
	"berth/oci/keeper/runner"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Namespaces and mounts: what went wrong for the obvious way, a test each.

// pod makes one with a shared pid namespace; it is removed at the test's end,
// when nothing of it may be left.
func (n *node) pod(r *Runtime) Pod {
	n.t.Helper()
	p := n.newPod(r)
	n.makePod(r, p)
	return p
}

// newPod describes one with a directory.
func (n *node) newPod(r *Runtime) Pod {
	n.t.Helper()
	n.names++
	id := fmt.Sprintf("p%d-%s-%d", n.names, r.Name, os.Getpid())
	p := Pod{
		ID: id, Dir: filepath.Join(n.run, "pods", id), Cgroup: CgroupRoot + "/" + id, OwnsCgroup: true,
		SharedPID: true, Hostname: "host-of-" + id, ShmSize: 1 << 20, FilesSize: 1 << 20,
		Sysctls: map[string]string{"net.ipv4.ip_unprivileged_port_start": "77", "kernel.shmmni": "1234"},
	}
	if err := os.MkdirAll(p.Dir, 0o700); err != nil {
		n.t.Fatal(err)
	}
	return p
}

func (n *node) makePod(r *Runtime, p Pod) {
	n.t.Helper()
	n.t.Cleanup(func() { n.removePod(r, p) })
	if err := r.MakePod(n.ctx, p); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) removePod(r *Runtime, p Pod) {
	n.t.Helper()
	if err := r.RemovePod(n.ctx, p); err != nil {
		n.t.Error(err)
	}
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		n.t.Fatal(err)
	}
	for _, name := range []string{p.Dir, p.NetNS()} {
		if strings.Contains(string(info), name) {
			n.t.Errorf("a mount of %s is left", name)
		}
	}
	for _, name := range []string{p.UserNS(), p.NetNS(), p.IPCNS(), p.UTSNS(), p.PIDNS(), p.Shm(), p.Files()} {
		if _, err := os.Lstat(name); !errors.Is(err, os.ErrNotExist) {
			n.t.Errorf("%s is left: %v", name, err)
		}
	}
	if slices.Contains(cgroup.Children(CgroupRoot), p.ID) {
		n.t.Errorf("the cgroup %s is left", p.Cgroup)
	}
}

// member makes a container of the pod.
func (n *node) member(r *Runtime, p Pod, script string) *container {
	n.t.Helper()
	c := n.container(r, script)
	c.Cgroup = p.Cgroup + "/" + c.ID
	c.spec.Linux.CgroupsPath = c.Cgroup
	c.spec.Linux.Namespaces = []specs.LinuxNamespace{
		{Type: specs.MountNamespace},
		{Type: specs.NetworkNamespace, Path: p.NetNS()},
		{Type: specs.IPCNamespace, Path: p.IPCNS()},
		{Type: specs.UTSNamespace, Path: p.UTSNS()},
		{Type: specs.PIDNamespace, Path: p.PIDNS()},
	}
	c.spec.Mounts = append(c.spec.Mounts, specs.Mount{
		Destination: "/dev/shm", Type: "bind", Source: p.Shm(), Options: []string{"rbind"},
	})
	return c
}

// init is the process that holds the pod's pid namespace.
func (n *node) init(p Pod) process {
	n.t.Helper()
	pids, err := cgroup.Procs(filepath.Join(p.Cgroup, p.ID))
	if err != nil || len(pids) != 1 {
		n.t.Fatalf("the init of pod %s: %v, %v", p.ID, pids, err)
	}
	return lookAt(pids[0])
}

// namespaces are the identities of what the pod has pinned.
func namespaces(t *testing.T, p Pod) map[string]uint64 {
	t.Helper()
	found := make(map[string]uint64)
	for _, path := range []string{p.NetNS(), p.IPCNS(), p.UTSNS(), p.PIDNS()} {
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			t.Fatal(err)
		}
		found[path] = st.Ino
	}
	return found
}

// Guards against namespaces that are not the pod's: host name, sysctls and
// /dev/shm, as a container that joins them by path sees them.
func TestContainerSeesThePodsNamespaces(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		p := n.pod(r)
		c := n.member(r, p, `hostname
			cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shmmni /proc/sys/net/ipv6/conf/all/accept_ra
			df -k /dev/shm | tail -n 1 | tr -s ' ' | cut -d ' ' -f 2; stat -c %a /dev/shm; stat -Lc %i /proc/self/ns/net`)
		c.start()
		c.wait()
		want := fmt.Sprintf("%s\n77\n1234\n0\n1024\n1777\n%d\n", p.Hostname, namespaces(t, p)[p.NetNS()])
		if out, errs := c.output(); out != want {
			t.Errorf("seen %q, %q, want %q", out, errs, want)
		}
		if b, _ := os.ReadFile("/proc/sys/kernel/shmmni"); string(b) == "1234\n" {
			t.Error("the sysctl is the host's")
		}
	})
}

// Guards against network namespaces in a private directory: CNI daemons and
// `ip netns` look in /run/netns.
func TestNetNamespaceIsInRunNetns(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		p := n.pod(r)
		var fs unix.Statfs_t
		if err := unix.Statfs("/run/netns/berth-"+p.ID, &fs); err != nil || fs.Type != unix.NSFS_MAGIC {
			t.Errorf("/run/netns/berth-%s: type %x, %v, want a namespace", p.ID, fs.Type, err)
		}
	})
}

// Guards against a pod that is made twice, or by half: what is there stays, and
// what is missing is made.
func TestMakePodAgain(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		p := n.pod(r)
		before := namespaces(t, p)
		if err := os.WriteFile(filepath.Join(p.Shm(), "file"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := r.MakePod(n.ctx, p); err != nil {
			t.Fatal(err)
		}
		if after := namespaces(t, p); fmt.Sprint(after) != fmt.Sprint(before) {
			t.Errorf("namespaces %v were made anew: %v", before, after)
		}
		if _, err := os.Stat(filepath.Join(p.Shm(), "file")); err != nil {
			t.Error(err)
		}
		parts := []string{p.NetNS(), p.IPCNS(), p.UTSNS(), p.PIDNS(), p.Shm(), p.Files()}
		for i, half := range append(parts, parts...) {
			if err := unix.Unmount(half, unix.MNT_DETACH); err != nil {
				t.Fatal(err)
			}
			if i < len(parts) { // else what it was mounted on is left
				if err := os.Remove(half); err != nil {
					t.Fatal(err)
				}
			}
			if err := r.MakePod(n.ctx, p); err != nil {
				t.Errorf("make the pod again without %s: %v", half, err)
			}
			c := n.member(r, p, "hostname; cat /proc/sys/kernel/shmmni; touch /dev/shm/x")
			c.start()
			if code := c.wait(); code != 0 {
				t.Errorf("exit code %d without %s", code, half)
			}
			if out, errs := c.output(); out != p.Hostname+"\n1234\n" || errs != "" {
				t.Errorf("without %s: seen %q, %q", half, out, errs)
			}
			c.remove()
		}
	})
}

// Guards against a removal that fails where there is nothing, or half.
func TestRemovePodAgain(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		p := n.pod(r)
		if err := unix.Unmount(p.IPCNS(), unix.MNT_DETACH); err != nil {
			t.Fatal(err)
		}
		n.removePod(r, p)
		n.removePod(r, p)
		n.awaitIdle()
		never := p
		never.ID += "-never"
		n.removePod(r, never)
	})
}

// Guards against a removal that fails with EBUSY: another mount namespace has a
// private copy of the pin.
func TestRemovePodWithACopyOfItsPins(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		p := n.pod(r)
		inOtherMounts(t, func() { n.removePod(r, p) })
	})
}

// inOtherMounts calls f while a thread has a private copy of all mounts.
func inOtherMounts(t *testing.T, f func()) {
	t.Helper()
	copied, leave, left := make(chan error), make(chan struct{}), make(chan struct{})
	go onThread(func() {
		defer close(left)
		copied <- privateMounts()
		<-leave
	})
	defer func() {
		close(leave)
		<-left
	}()
	if err := <-copied; err != nil {
		t.Fatal(err)
	}
	f()
}

// privateMounts gives the calling thread mounts of its own.
func privateMounts() error {
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return err
	}
	return unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
}

// Guards against mounts of a daemon with mounts of its own (PrivateTmp,
// ProtectSystem), which no runtime sees: a detached root is attached where the
// runtime runs.
func TestRootOfADaemonWithMountsOfItsOwn(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		c := n.container(r, "cat /hidden")
		started := make(chan error)
		go onThread(func() {
			started <- func() error {
				if err := privateMounts(); err != nil {
					return err
				}
				if err := unix.Mount("tmpfs", filepath.Join(n.root, "tmp"), "tmpfs", 0, ""); err != nil {
					return err
				}
				hidden := filepath.Join(n.root, "tmp")
				for _, dir := range []string{"bin", "proc", "sys", "dev", "tmp"} {
					if err := os.Mkdir(filepath.Join(hidden, dir), 0o755); err != nil {
						return err
					}
				}
				if err := os.WriteFile(filepath.Join(hidden, "hidden"), []byte("treasure"), 0o644); err != nil {
					return err
				}
				if err := unix.Mount(filepath.Join(n.root, "bin"), filepath.Join(hidden, "bin"), "", unix.MS_BIND, ""); err != nil {
					return err
				}
				_, err := c.startFrom(hidden)
				return err
			}()
		})
		if err := <-started; err != nil {
			t.Fatal(err)
		}
		c.wait()
		if out, errs := c.output(); out != "treasure" {
			t.Errorf("output %q, %q", out, errs)
		}
	})
}

// Guards against a pid namespace that is not shared, or whose init does not
// reap.
func TestSharedPIDNamespace(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		p := n.pod(r)
		first := n.member(r, p, "sleep 4321")
		first.start()
		second := n.member(r, p, `until ps -o args | grep -q "sleep 432[1]"; do :; done
			(sh -c 'exit 0 & exec true')
			while ps -o ppid,stat | grep -q "^ *1 *Z"; do :; done
			cat /proc/1/comm`)
		second.start()
		if code := second.wait(); code != 0 {
			t.Errorf("exit code %d", code)
		}
		if out, errs := second.output(); out != runner.InitName+"\n" {
			t.Errorf("first process %q, %q", out, errs)
		}
	})
}

// Guards against an init that dies with the runner that started it.
func TestInitSurvivesTheRunner(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		p := n.pod(r)
		before := n.init(p)
		h := n.hello()
		if before.parent != h.Pid {
			t.Errorf("the init's parent is %d, want the keeper, %d", before.parent, h.Pid)
		}
		kill(t, h.Runner)
		c := n.member(r, p, "exit 3")
		c.start()
		if code := c.wait(); code != 3 {
			t.Errorf("exit code %d, want 3", code)
		}
		if after := n.init(p); after.pid != before.pid {
			t.Errorf("the init was %v, is %v", before, after)
		}
	})
}

// defaultCapabilities are those of a container that asks for nothing.
var defaultCapabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
	"CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
}

// attack prints what a container gets of the init of its pid namespace.
const attack = `
	echo root: $(ls -a /proc/1/root 2>&1)
	echo etc: $(cat /proc/1/root/etc/shadow 2>&1 | head -c 100)
	echo cwd: $(ls -a /proc/1/cwd 2>&1)
	echo fds: $(ls /proc/1/fd 2>&1)
	echo environ: $(cat /proc/1/environ 2>&1)
	touch /proc/1/root/made 2>/dev/null && echo made a file
	(echo x >>/proc/1/exe) 2>/dev/null && echo wrote to the program
	true`

// Guards against the host seen through the init of a shared pid namespace.
func TestInitShowsNothingOfTheHost(t *testing.T) {
	for _, test := range []struct {
		name string
		caps []string
		sees bool // the init's empty root rather than nothing
	}{
		{"default capabilities", defaultCapabilities, false},
		{"SYS_PTRACE", append(slices.Clone(defaultCapabilities), "CAP_SYS_PTRACE"), true},
		{"all capabilities", allCapabilities(t), true},
	} {
		t.Run(test.name, func(t *testing.T) {
			eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
				p := n.pod(r)
				c := n.member(r, p, attack)
				c.spec.Process.Capabilities = &specs.LinuxCapabilities{
					Bounding: test.caps, Effective: test.caps, Permitted: test.caps,
				}
				c.start()
				c.wait()
				out, errs := c.output()
				want := `root: ls: /proc/1/root: Permission denied
etc: cat: can't open '/proc/1/root/etc/shadow': Permission denied
cwd: ls: /proc/1/cwd: Permission denied
fds:
environ: cat: can't open '/proc/1/environ': Permission denied
`
				if test.sees {
					want = `root: . ..
etc: cat: can't open '/proc/1/root/etc/shadow': No such file or directory
cwd: . ..
fds:
environ: GODEBUG=containermaxprocs=0
`
				}
				if out != want || errs != "" {
					t.Errorf("seen %s%s, want %s", out, errs, want)
				}
			})
		})
	}
}

// attackName is argv[0] of the test binary when it plays a debugger in a
// container.
const attackName = "/attack"

// attackInit tries to become the debugger of the init.
func attackInit() {
	runtime.LockOSThread()
	fmt.Println(unix.PtraceAttach(1))
}

// Guards against a debugger from a container without SYS_PTRACE.
func TestInitCannotBeDebugged(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		p := n.pod(r)
		for _, caps := range [][]string{nil, defaultCapabilities, without(allCapabilities(t), "CAP_SYS_PTRACE")} {
			c := n.member(r, p, "")
			c.spec.Process.Args = []string{attackName}
			c.spec.Process.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}
			mounts := map[string]string{attackName: self(t), "/lib": "/lib", "/lib64": "/lib64", "/usr/lib": "/usr/lib"}
			for to, from := range mounts {
				c.spec.Mounts = append(c.spec.Mounts, specs.Mount{
					Destination: to, Source: from, Type: "bind", Options: []string{"bind", "ro"},
				})
			}
			c.start()
			c.wait()
			if out, errs := c.output(); out != unix.EPERM.Error()+"\n" {
				t.Errorf("with %v: %q, %q, want EPERM", caps, out, errs)
			}
		}
	})
}

func without(list []string, name string) []string {
	return slices.DeleteFunc(slices.Clone(list), func(s string) bool { return s == name })
}

// Guards against an init that is worth taking over: a container with SYS_PTRACE
// can make it do what it likes. It has no capability, no namespace of the host's
// but what the pod shares with it, and can gain none.
func TestInitHasNothingToTake(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		p := n.pod(r)
		pid := n.init(p).pid
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{
			"CapInh:\t0000000000000000\n", "CapPrm:\t0000000000000000\n", "CapEff:\t0000000000000000\n",
			"CapBnd:\t0000000000000000\n", "CapAmb:\t0000000000000000\n", "NoNewPrivs:\t1\n",
		} {
			if !strings.Contains(string(status), want) {
				t.Errorf("not %q in its status:\n%s", want, status)
			}
		}
		for _, name := range []string{"net", "ipc", "uts", "mnt", "pid"} {
			its, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, name))
			if err != nil {
				t.Fatal(err)
			}
			if ours, _ := os.Readlink("/proc/self/ns/" + name); its == ours {
				t.Errorf("it is in the host's %s", its)
			}
		}
		if fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid)); err != nil || len(fds) > 0 {
			t.Errorf("its open files: %v, %v", fds, err)
		}
	})
}

// allCapabilities are those that this machine lets anybody have.
func allCapabilities(t *testing.T) []string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, set, _ := strings.Cut(string(b), "CapBnd:")
	var mask uint64
	if _, err := fmt.Sscanf(set, "%x", &mask); err != nil {
		t.Fatal(err)
	}
	var names []string
	for i, name := range strings.Fields(`CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP
		LINUX_IMMUTABLE NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT
		SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE
		AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ`) {
		if mask&(1<<i) != 0 {
			names = append(names, "CAP_"+name)
		}
	}
	return names
}

// Guards against leftovers without a record, and against what a record names: GC
// destroys the one wherever it is, and leaves the other alone.
func TestGCTakesWhatNobodyKeeps(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		kept, lost := n.pod(r), n.pod(r)
		living, dying := n.member(r, kept, "sleep 1000"), n.member(r, lost, "sleep 1000")
		livingPid, dyingPid := living.start(), dying.start()
		stranger := CgroupRoot + "/stranger"
		for _, h := range []string{anyHierarchy(), "/sys/fs/cgroup/pids"} {
			if _, err := os.Stat(h); err == nil {
				_ = os.MkdirAll(filepath.Join(h, stranger, "below"), 0o755)
			}
		}
		// The machine may have others' pods: they are kept.
		unknown := map[string]bool{lost.ID: true, dying.ID: true, "stranger": true}
		if err := r.GC(n.ctx, func(id string) bool { return !unknown[id] }); err != nil {
			t.Fatal(err)
		}
		if p := lookAt(dyingPid); p.pid != 0 && p.state != "Z" {
			t.Errorf("the container nobody keeps is %v", p)
		}
		if p := lookAt(livingPid); p.pid == 0 || p.state == "Z" {
			t.Errorf("the kept container is %v", p)
		}
		if _, err := os.Lstat(lost.NetNS()); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left: %v", lost.NetNS(), err)
		}
		namespaces(t, kept) // all there
		children := cgroup.Children(CgroupRoot)
		if slices.Contains(children, lost.ID) || slices.Contains(children, "stranger") || !slices.Contains(children, kept.ID) {
			t.Errorf("cgroups %v, want %s and not %s", children, kept.ID, lost.ID)
		}
		if left, _ := os.ReadDir(r.Root()); len(left) != 1 || left[0].Name() != living.ID {
			t.Errorf("states of the runtime: %v, want %s", left, living.ID)
		}
		if ids := n.keeper.IDs(); len(ids) != 1 || ids[0] != living.ID {
			t.Errorf("the keeper knows %v, want %s", ids, living.ID)
		}
		if err := r.Signal(n.ctx, living.Container, syscall.SIGKILL); err != nil {
			t.Error(err)
		}
	})
}
