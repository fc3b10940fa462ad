package oci

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"berth/oci/cgroup"
	"berth/oci/keeper"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// testUsers are ids that nobody on a test machine has.
func testUsers() *UserNamespace {
	return &UserNamespace{UIDs: IDs{Host: 1 << 20, Size: 1 << 16}, GIDs: IDs{Host: 3 << 20, Size: 1 << 16}}
}

// userPod is n.pod with a user namespace.
func (n *node) userPod(r *Runtime) Pod {
	n.t.Helper()
	p := n.newPod(r)
	p.Users = testUsers()
	passable(n.t, p.Dir)
	n.makePod(r, p)
	return p
}

// passable opens dir and those above it, as the pods' owner does for the root of
// a user namespace.
func passable(t *testing.T, dir string) {
	t.Helper()
	for ; dir != "/dev/shm"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o711); err != nil {
			t.Fatal(err)
		}
	}
}

// userMember is n.member of a pod with a user namespace; its mounts have the
// pod's mappings.
func (n *node) userMember(r *Runtime, p Pod, script string) *container {
	n.t.Helper()
	c := n.member(r, p, script)
	c.Users = p.Users
	passable(n.t, c.Dir)
	c.spec.Root.Readonly = false
	c.spec.Linux.Namespaces = append(c.spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace, Path: p.UserNS()})
	for i, m := range c.spec.Mounts {
		if m.Type == "bind" {
			c.spec.Mounts[i].UIDMappings, c.spec.Mounts[i].GIDMappings = p.Users.UIDs.Mappings(), p.Users.GIDs.Mappings()
		}
	}
	c.mapRoot = p.UserNS()
	return c
}

// mapIDs gives the detached mount fd the ids of the user namespace at path.
func mapIDs(fd int, path string) error {
	ns, err := os.Open(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ns.Fd())}
	return unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr)
}

// Guards against namespaces that the pod's user namespace does not own: runc
// cannot mount sysfs then, and crun shows the host's.
func TestUserNamespaceOwnsTheOthers(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		p := n.userPod(r)
		var user unix.Stat_t
		if err := unix.Stat(p.UserNS(), &user); err != nil {
			t.Fatal(err)
		}
		for _, path := range []string{p.NetNS(), p.IPCNS(), p.UTSNS(), p.PIDNS()} {
			if owner := ownerOf(t, path); owner != user.Ino {
				t.Errorf("the owner of %s is user:[%d], want user:[%d]", path, owner, user.Ino)
			}
		}
	})
}

// ownerOf is the user namespace that owns the namespace at path.
func ownerOf(t *testing.T, path string) uint64 {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fd, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_USERNS)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

// What a container in a user namespace is and sees: its ids, host name, sysctls
// that its namespaces own, a sysfs of its own network, a root filesystem, shm
// and volumes of its own ids, output that it may open anew.
func TestContainerInAUserNamespace(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		p := n.userPod(r)
		volume := filepath.Join(t.TempDir(), "volume")
		if err := errors.Join(os.MkdirAll(volume, 0o700), os.WriteFile(filepath.Join(volume, "old"), nil, 0o600), os.Chown(filepath.Join(volume, "old"), 7, 8)); err != nil {
			t.Fatal(err)
		}
		c := n.userMember(r, p, `
			tr -s ' ' </proc/self/uid_map; tr -s ' ' </proc/self/gid_map
			hostname; cat /proc/sys/kernel/shmmni /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/net/ipv6/conf/all/accept_ra
			ls /sys/class/net
			stat -c %u:%g:%a / /bin/busybox /dev/shm /volume /volume/old
			touch /new && stat -c %u:%g /new
			touch /volume/new /dev/shm/new && stat -c %u:%g /volume/new /dev/shm/new
			echo out >/dev/stdout; echo err >/dev/stderr
			echo 5678 >/proc/sys/kernel/shmmni && cat /proc/sys/kernel/shmmni
			sleep 1000`)
		c.spec.Mounts = append(c.spec.Mounts, specs.Mount{
			Destination: "/volume", Type: "bind", Source: volume, Options: []string{"rbind"},
			UIDMappings: p.Users.UIDs.Mappings(), GIDMappings: p.Users.GIDs.Mappings(),
		})
		all := allCapabilities(t)
		c.spec.Process.Capabilities = &specs.LinuxCapabilities{Bounding: all, Effective: all, Permitted: all}
		pid := c.start()
		c.awaitOutput("5678\n")
		want := fmt.Sprintf(" 0 %d 65536\n 0 %d 65536\n%s\n1234\n77\n0\nlo\n", p.Users.UIDs.Host, p.Users.GIDs.Host, p.Hostname) +
			"0:0:755\n0:0:755\n0:0:1777\n0:0:700\n7:8:600\n0:0\n0:0\n0:0\nout\n5678\n"
		if out, errs := c.output(); out != want || errs != "err\n" {
			t.Errorf("seen %q, %q\nwant %q", out, errs, want)
		}
		if b, _ := os.ReadFile("/proc/sys/kernel/shmmni"); string(b) == "5678\n" || string(b) == "1234\n" {
			t.Error("the sysctl is the host's")
		}
		host := func(path string, uid, gid uint32) {
			t.Helper()
			var st unix.Stat_t
			if err := unix.Stat(path, &st); err != nil || st.Uid != uid || st.Gid != gid {
				t.Errorf("on the host, %s is %d:%d, %v, want %d:%d", path, st.Uid, st.Gid, err, uid, gid)
			}
		}
		host(fmt.Sprintf("/proc/%d", pid), p.Users.UIDs.Host, p.Users.GIDs.Host)
		host(filepath.Join(volume, "new"), 0, 0)
		host(filepath.Join(volume, "old"), 7, 8)
		host(filepath.Join(p.Shm(), "new"), 0, 0)
		host(filepath.Join(c.Dir, keeper.StdoutFIFO), p.Users.UIDs.Host, p.Users.GIDs.Host)

		code, out, errs, err := c.exec("id -u; cat /proc/self/uid_map | tr -s ' '; echo again >/dev/stdout; echo err >/dev/stderr; exit 4")
		if want := fmt.Sprintf("0\n 0 %d 65536\nagain\n", p.Users.UIDs.Host); code != 4 || out != want || errs != "err\n" || err != nil {
			t.Errorf("exec: %d, %q, %q, %v, want 4, %q", code, out, errs, err, want)
		}
		c.spec.Process.User = specs.User{UID: 1000, GID: 1001}
		code, out, errs, err = c.exec("id -u; id -g; echo again >/dev/stdout")
		if code != 0 || out != "1000\n1001\nagain\n" || err != nil {
			t.Errorf("exec by a user: %d, %q, %q, %v", code, out, errs, err)
		}
	})
}

// A terminal works in a user namespace, and so does a user that is not its root.
func TestTerminalInAUserNamespace(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		p := n.userPod(r)
		c := n.userMember(r, p, "tty; echo tty >/dev/tty; echo out >/dev/stdout; id -u; exit 6")
		c.spec.Process.Terminal = true
		c.spec.Process.User = specs.User{UID: 1000, GID: 1000}
		c.start()
		if code := c.wait(); code != 6 {
			t.Errorf("exit code %d", code)
		}
		if out, errs := c.output(); !strings.Contains(out, "tty\r\nout\r\n1000\r\n") {
			t.Errorf("output %q, %q", out, errs)
		}
	})
}

// Guards against a way out: the root of a user namespace has nothing of the
// host's root, neither its files nor its processes.
func TestUserNamespaceIsShutIn(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		p := n.userPod(r)
		c := n.userMember(r, p, `
			cat /host/secret
			touch /host/new
			ls /host/run
			mount -o remount,rw /host
			chown 0 /host/open
			hostname changed && hostname
			true`)
		c.spec.Process.Capabilities = &specs.LinuxCapabilities{Bounding: allCapabilities(t), Effective: allCapabilities(t), Permitted: allCapabilities(t)}
		dir := t.TempDir()
		if err := errors.Join(os.WriteFile(filepath.Join(dir, "secret"), []byte("secret"), 0o600), os.Mkdir(filepath.Join(dir, "run"), 0o700),
			os.WriteFile(filepath.Join(dir, "open"), nil, 0o666)); err != nil {
			t.Fatal(err)
		}
		// Without a mapping, as a container would come by it that has broken out.
		c.spec.Mounts = append(c.spec.Mounts, specs.Mount{Destination: "/host", Type: "bind", Source: dir, Options: []string{"bind", "ro"}})
		passable(t, "/dev/shm")
		if _, err := c.tryStart(); err != nil && r.Name == "crun" {
			return // crun cannot even go there
		} else if err != nil {
			t.Fatal(err)
		}
		c.wait()
		out, errs := c.output()
		if out != "changed\n" || strings.Count(errs, "\n") != 5 {
			t.Errorf("output %q, %q, want five errors and the pod's own host name", out, errs)
		}
	})
}

// Guards against an init of a shared pid namespace that is the host's root.
func TestInitIsInTheUserNamespace(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		p := n.userPod(r)
		init := n.init(p)
		if init.parent != n.hello().Pid {
			t.Errorf("its parent is %d, want the keeper, %d", init.parent, n.hello().Pid)
		}
		var st, user unix.Stat_t
		if err := errors.Join(unix.Stat(fmt.Sprintf("/proc/%d/ns/user", init.pid), &st), unix.Stat(p.UserNS(), &user)); err != nil || st.Ino != user.Ino {
			t.Errorf("it is in user:[%d], %v, want user:[%d]", st.Ino, err, user.Ino)
		}
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", init.pid))
		if err != nil {
			t.Fatal(err)
		}
		id := fmt.Sprint(p.Users.UIDs.Host)
		for _, want := range []string{
			"Uid:\t" + strings.Join([]string{id, id, id, id}, "\t") + "\n", "CapEff:\t0000000000000000\n", "CapPrm:\t0000000000000000\n",
			"CapBnd:\t0000000000000000\n", "NoNewPrivs:\t1\n",
		} {
			if !strings.Contains(string(status), want) {
				t.Errorf("not %q in its status:\n%s", want, status)
			}
		}
		if fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", init.pid)); err != nil || len(fds) > 0 {
			t.Errorf("its open files: %v, %v", fds, err)
		}
		c := n.userMember(r, p, "cat /proc/1/comm"+attack)
		all := allCapabilities(t)
		c.spec.Process.Capabilities = &specs.LinuxCapabilities{Bounding: all, Effective: all, Permitted: all}
		c.start()
		c.wait()
		want := `berth-init
root: . ..
etc: cat: can't open '/proc/1/root/etc/shadow': No such file or directory
cwd: . ..
fds:
environ: GODEBUG=containermaxprocs=0
`
		if out, errs := c.output(); out != want || errs != "" {
			t.Errorf("seen %q, %q", out, errs)
		}
	})
}

// Guards against a pod with a user namespace that is made twice, or by half: the
// namespaces that it owns are made anew with it, all of them.
func TestMakePodWithAUserNamespaceAgain(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		p := n.userPod(r)
		before := namespaces(t, p)
		if err := r.MakePod(n.ctx, p); err != nil {
			t.Fatal(err)
		}
		if after := namespaces(t, p); fmt.Sprint(after) != fmt.Sprint(before) {
			t.Errorf("namespaces %v were made anew: %v", before, after)
		}
		for _, half := range []string{p.UserNS(), p.NetNS(), p.IPCNS(), p.UTSNS(), p.PIDNS()} {
			if err := unix.Unmount(half, unix.MNT_DETACH); err != nil {
				t.Fatal(err)
			}
			if err := r.MakePod(n.ctx, p); err != nil {
				t.Errorf("make the pod again without %s: %v", half, err)
			}
			var user unix.Stat_t
			if err := unix.Stat(p.UserNS(), &user); err != nil {
				t.Fatal(err)
			}
			for path := range namespaces(t, p) {
				if owner := ownerOf(t, path); owner != user.Ino {
					t.Errorf("without %s: the owner of %s is user:[%d], want user:[%d]", half, path, owner, user.Ino)
				}
			}
			n.init(p) // one
			c := n.userMember(r, p, "hostname; cat /proc/sys/kernel/shmmni; touch /dev/shm/x")
			c.start()
			c.wait()
			if out, errs := c.output(); out != p.Hostname+"\n1234\n" || errs != "" {
				t.Errorf("without %s: seen %q, %q", half, out, errs)
			}
			c.remove()
		}
	})
}

// A sysctl that the kernel does not have, or whose value it does not take, is
// told by name, with a user namespace and without, and the removal takes the
// rest. No OCI runtime has a part in it.
func TestSysctlThatTheKernelRefuses(t *testing.T) {
	n := newNode(t)
	r := n.runtime("runc")
	if err := r.TuneNetwork(n.ctx, n.newPod(r), map[string]string{"kernel.shmmni": "1234"}); err == nil || !strings.Contains(err.Error(), "kernel.shmmni") {
		t.Errorf("a sysctl that would be the host's: %v", err)
	}
	for _, users := range []*UserNamespace{nil, testUsers()} {
		for _, want := range []SysctlError{
			{"net.ipv4.no_such_thing", "no such file or directory"},
			{"net.ipv4.ip_unprivileged_port_start", "invalid argument"}, // 70000 is no port
			{"net.core", "is a directory"},
			{"kernel.no_such_thing", "no such file or directory"},
		} {
			p := n.newPod(r)
			p.Users = users
			passable(t, p.Dir)
			p.Sysctls[want.Name] = "70000"
			var refused *SysctlError
			err := r.MakePod(n.ctx, p)
			if err == nil && strings.HasPrefix(want.Name, "net.") { // it may be an interface's
				err = r.TuneNetwork(n.ctx, p, map[string]string{want.Name: "70000"})
			}
			if !errors.As(err, &refused) || *refused != want {
				t.Errorf("got %v, want %v", err, &want)
			}
			n.removePod(r, p)
			if pids, _ := cgroup.Procs(filepath.Join(p.Cgroup, p.ID)); len(pids) > 0 {
				t.Errorf("processes %v are left", pids)
			}
			n.awaitIdle()
		}
	}
}

// A sysctl of an interface waits for it, also where a dot is part of its name; what a
// new interface takes from is set before it is there; and what a plugin has changed is
// the pod's again.
func TestSysctlsOfInterfaces(t *testing.T) {
	n := newNode(t)
	r := n.runtime("runc")
	for _, users := range []*UserNamespace{nil, testUsers()} {
		p := n.newPod(r)
		p.Users = users
		passable(t, p.Dir)
		p.Sysctls = map[string]string{
			"net.ipv4.conf.eth0/100.rp_filter": "2", "net.ipv4.conf.default.arp_ignore": "3", "net.ipv4.tcp_fin_timeout": "17", "kernel.domainname": "example.org",
		}
		n.makePod(r, p)
		network := maps.Clone(p.Sysctls)
		delete(network, "kernel.domainname")
		const plugin = "ip link add eth0.100 type veth peer name other && echo 30 >/proc/sys/net/ipv4/tcp_fin_timeout"
		inside := func(script string) string {
			out, err := exec.Command("nsenter", "--net="+p.NetNS(), "--uts="+p.UTSNS(), "sh", "-c", script).CombinedOutput()
			if err != nil {
				t.Fatalf("%s: %v: %s", script, err, out)
			}
			return string(out)
		}
		inside(plugin)
		if err := r.TuneNetwork(n.ctx, p, network); err != nil {
			t.Fatal(err)
		}
		const look = "cat /proc/sys/net/ipv4/conf/eth0.100/rp_filter /proc/sys/net/ipv4/conf/eth0.100/arp_ignore /proc/sys/net/ipv4/tcp_fin_timeout /proc/sys/kernel/domainname"
		if got, want := inside(look), "2\n3\n17\nexample.org\n"; got != want {
			t.Errorf("user namespace %v: %q, want %q", users != nil, got, want)
		}
	}
}

// A directory that the namespace's root cannot go through fails the making, by
// name, and nothing waits for ever.
func TestMakePodWhereItsRootCannotGo(t *testing.T) {
	n := newNode(t)
	r := n.runtime("runc")
	p := n.newPod(r)
	p.Users = testUsers()
	if err := r.MakePod(n.ctx, p); err == nil || !strings.Contains(err.Error(), "init") || !strings.Contains(err.Error(), "permission denied") {
		t.Errorf("got %v, want an init that was denied its root", err)
	}
	n.removePod(r, p)
	await(t, "all processes end", func() bool { return len(ofUsers(t, p.Users)) == 0 })
}

// This kernel has what pods with a user namespace need; a directory that their
// root cannot reach, or a filesystem without id mappings, is named.
func TestTryUserNamespaces(t *testing.T) {
	n := newNode(t)
	dir := t.TempDir()
	if err := TryUserNamespaces(n.ctx, n.keeper, n.run, dir); err != nil {
		t.Error(err)
	}
	closed := filepath.Join(dir, "closed", "run")
	if err := errors.Join(os.MkdirAll(closed, 0o711), os.Chmod(filepath.Dir(closed), 0o700)); err != nil {
		t.Fatal(err)
	}
	if err := TryUserNamespaces(n.ctx, n.keeper, closed); !errors.Is(err, ErrNotSupported) || !strings.Contains(err.Error(), closed) {
		t.Errorf("got %v, want ErrNotSupported for %s", err, closed)
	}
	if err := TryUserNamespaces(n.ctx, n.keeper, n.run, "/proc/sys"); !errors.Is(err, ErrNotSupported) || !strings.Contains(err.Error(), "/proc/sys") {
		t.Errorf("got %v, want ErrNotSupported for /proc/sys", err)
	}
	n.awaitIdle()
}

// Guards against the mounts of a volume that are missing in the container
// without a word: an old crun leaves them out where it maps ids.
func TestMountsBelowAMappedMount(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		p := n.userPod(r)
		volume := filepath.Join(t.TempDir(), `a b\c`)
		below := filepath.Join(volume, "below")
		if err := errors.Join(os.MkdirAll(below, 0o755), unix.Mount("tmpfs", below, "tmpfs", 0, "mode=755")); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Unmount(below, unix.MNT_DETACH) })
		if err := os.WriteFile(filepath.Join(below, "file"), []byte("treasure"), 0o644); err != nil {
			t.Fatal(err)
		}
		c := n.userMember(r, p, "cat /volume/below/file")
		c.spec.Mounts = append(c.spec.Mounts, specs.Mount{
			Destination: "/volume", Type: "bind", Source: volume, Options: []string{"rbind"},
			UIDMappings: p.Users.UIDs.Mappings(), GIDMappings: p.Users.GIDs.Mappings(),
		})
		_, err := c.tryStart()
		if r.quirks.skipsBelowMapped {
			if !errors.Is(err, ErrNotSupported) || !strings.Contains(err.Error(), "/below") || !strings.Contains(err.Error(), r.Version) {
				t.Errorf("got %v, want ErrNotSupported that names the mount and %s", err, r.Version)
			}
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		c.wait()
		if out, errs := c.output(); out != "treasure" {
			t.Errorf("seen %q, %q", out, errs)
		}
	})
}

func TestMountBelow(t *testing.T) {
	const table = "22 1 0:1 / / rw - ext4 a a\n23 22 0:2 / /a/b rw - tmpfs b b\n24 22 0:2 / /x\\040y/z rw - tmpfs b b\n"
	for dir, want := range map[string]string{"/": "/a/b", "/a": "/a/b", "/a/": "/a/b", "/a/b": "", "/b": "", "/a/bc": "", "/x y": `/x\040y/z`} {
		if got := mountBelow(table, dir); got != want {
			t.Errorf("below %s: %q, want %q", dir, got, want)
		}
	}
}
