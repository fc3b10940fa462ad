package runner

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// makePod makes what p names and is not there yet, and pins it.
func makePod(p Pod) error {
	namespaces := makeNamespaces
	if p.UserNS != "" {
		namespaces = makeUserNamespaces
	}
	if err := namespaces(p); err != nil {
		return err
	}
	for _, fs := range []struct{ source, at, options string }{
		{"shm", p.Shm, fmt.Sprintf("mode=1777,size=%d", p.ShmSize)},
		// Few inodes: extended attributes count as such.
		{"etc", p.Files, fmt.Sprintf("mode=755,size=%d,nr_inodes=16", p.FilesSize)},
	} {
		if fs.at == "" || mounted(fs.at) {
			continue
		}
		if err := mountTmpfs(fs.source, fs.at, fs.options); err != nil {
			return fmt.Errorf("mount %s of the pod: %w", fs.source, err)
		}
	}
	if p.PIDNS != "" && !pinned(p.PIDNS) {
		return startInit(p)
	}
	return nil
}

// alone calls do when nothing else is done to the pod: a berthd that has died may
// have left its making under way when the next one clears it.
func (r *runner) alone(p Pod, do func(Pod) error) error {
	done := make(chan struct{})
	r.mu.Lock()
	for other := r.pods[p.ID]; other != nil; other = r.pods[p.ID] {
		r.mu.Unlock()
		<-other
		r.mu.Lock()
	}
	r.pods[p.ID] = done
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		delete(r.pods, p.ID)
		r.mu.Unlock()
		close(done)
	}()
	return do(p)
}

// makeNamespaces makes net, ipc and uts in one unshare. They are made together
// or not at all: sysctls and the host name are set in the same thread before
// the first pin appears, and net's, which comes last, says that all are there.
func makeNamespaces(p Pod) error {
	pins := []struct {
		path, name string
		flag       int
	}{
		{p.IPCNS, "ipc", unix.CLONE_NEWIPC},
		{p.UTSNS, "uts", unix.CLONE_NEWUTS},
		{p.NetNS, "net", unix.CLONE_NEWNET},
	}
	flags, missing := 0, false
	for _, pin := range pins {
		if pin.path != "" {
			flags |= pin.flag
			missing = missing || !pinned(pin.path)
		}
	}
	if !missing {
		return nil
	}
	for _, pin := range pins { // half of a crashed try
		if pin.path != "" {
			if err := unpin(pin.path); err != nil {
				return err
			}
		}
	}
	return inThread(func() error {
		if err := unix.Unshare(flags); err != nil {
			return fmt.Errorf("make namespaces of pod %s: %w", p.ID, err)
		}
		if err := setUp(p); err != nil {
			return err
		}
		for _, pin := range pins {
			if pin.path == "" {
				continue
			}
			if err := pinThread(pin.path, pin.name); err != nil {
				return err
			}
		}
		return nil
	})
}

// netSysctls is what the names of sysctls of a network namespace begin with.
const netSysctls = "net."

// setUp gives the caller's new namespaces what p's have.
func setUp(p Pod) error {
	if p.UTSNS != "" {
		if err := unix.Sethostname([]byte(p.Hostname)); err != nil {
			return fmt.Errorf("set host name %q: %w", p.Hostname, err)
		}
	}
	if p.NetNS != "" {
		if err := refuseRouterAdvertisements(); err != nil {
			return err
		}
	}
	return writeSysctls(p.Sysctls, func(name string, err error) bool {
		return strings.HasPrefix(name, netSysctls) && errors.Is(err, fs.ErrNotExist)
	})
}

// tuneNetwork writes sysctls in a network namespace that plugins have set up. Others
// than the network's would be the host's here.
func tuneNetwork(p Pod) error {
	for name := range p.Sysctls {
		if !strings.HasPrefix(name, netSysctls) {
			return fmt.Errorf("sysctl %s is not of the network", name)
		}
	}
	return inThread(func() error {
		if err := enter(Pod{NetNS: p.NetNS}); err != nil {
			return err
		}
		return writeSysctls(p.Sysctls, func(string, error) bool { return false })
	})
}

// inThread runs f on an operating system thread that ends with it: its
// namespaces are nobody else's.
func inThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		if unix.Gettid() != unix.Getpid() {
			done <- f()
			return
		}
		// The process's first thread never ends: it would hold the namespaces.
		// While it is locked here, f gets another.
		done <- inThread(f)
		runtime.UnlockOSThread()
	}()
	return <-done
}

// refuseRouterAdvertisements keeps a container on the pod's network from
// becoming its router (CVE-2020-10749): the interfaces that plugins make later take
// the default. The pod's own sysctls come after it.
func refuseRouterAdvertisements() error {
	for _, name := range []string{"all", "default"} {
		err := os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/accept_ra", []byte("0"), 0)
		if err != nil && !errors.Is(err, os.ErrNotExist) { // no IPv6 here
			return err
		}
	}
	return nil
}

// writeSysctls writes through /proc/sys, which shows the thread's own
// namespaces. The names were validated by berthd; only the kernel knows which of
// them it has, and what values they take. The error is a *Refusal, unless later
// says that it is too early for this one.
func writeSysctls(sysctls map[string]string, later func(name string, err error) bool) error {
	for _, name := range slices.Sorted(maps.Keys(sysctls)) {
		if err := writeSysctl(name, sysctls[name]); err != nil && !later(name, err) {
			var at *fs.PathError
			if errors.As(err, &at) { // its path is the name again
				err = at.Err
			}
			return &Refusal{Sysctl: name, Reason: err.Error()}
		}
	}
	return nil
}

// sysctlPath turns a name into a path: the dots between its parts, and the slashes
// that stand for dots in them.
var sysctlPath = strings.NewReplacer(".", "/", "/", ".")

// writeSysctl creates nothing: a name that the kernel does not have shall be
// missing, not forbidden. The domain name has a system call, which the root of a user
// namespace may use where it may not write the file.
func writeSysctl(name, value string) error {
	if name == "kernel.domainname" {
		return unix.Setdomainname([]byte(value))
	}
	f, err := os.OpenFile(filepath.Join("/proc/sys", sysctlPath.Replace(name)), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

// pinThread binds the calling thread's namespace to path.
func pinThread(path, name string) error {
	return pin(path, fmt.Sprintf("/proc/self/task/%d/ns/%s", unix.Gettid(), name))
}

// pin binds the namespace file at source to path.
func pin(path, source string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o600)
	if err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	f.Close()
	if err := unix.Mount(source, path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("pin namespace at %s: %w", path, err)
	}
	return nil
}

// pinned reports that a namespace is bound to path.
func pinned(path string) bool {
	var fs unix.Statfs_t
	return unix.Statfs(path, &fs) == nil && fs.Type == unix.NSFS_MAGIC
}

// unpin undoes pin; nil if there is nothing. Private copies of the mount in
// other mount namespaces live on, so a busy file is no error.
func unpin(path string) error { return detach(path) }

func mountTmpfs(source, path, options string) error {
	if err := os.MkdirAll(path, 0o755); err != nil {
		return err
	}
	return unix.Mount(source, path, "tmpfs", unix.MS_NOEXEC|unix.MS_NOSUID|unix.MS_NODEV, options)
}

// clearPod undoes makePod, also half of it. The pod's containers are gone.
func clearPod(p Pod) error {
	ctx, cancel := context.WithTimeout(context.Background(), killTimeout)
	defer cancel()
	for _, path := range []string{p.InitCgroup, p.Cgroup} {
		if path == "" {
			continue
		}
		if err := end(ctx, path); err != nil {
			return err
		}
	}
	for _, path := range []string{p.PIDNS, p.NetNS, p.UTSNS, p.IPCNS, p.UserNS, p.Shm, p.Files, p.Init} {
		if path == "" {
			continue
		}
		if err := detach(path); err != nil {
			return err
		}
	}
	return nil
}
