package runner

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"syscall"

	"berth/oci/cgroup"

	"golang.org/x/sys/unix"
)

// InitName is argv[0] of the process that holds a shared pid namespace; the
// keeper's binary is Init then.
const InitName = "berth-init"

// Descriptors that the init starts with.
const (
	initUp     = 3 // written to once it cannot be looked into; closed last
	initSealed = 4 // read from until it is shut in; its end: the runner has died
)

// sealedSelf is this program in a memory file that nobody can change: a
// container that gets hold of an init's /proc/1/exe has a copy without a name.
var sealedSelf = sync.OnceValues(func() (*os.File, error) {
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		return nil, err
	}
	defer self.Close()
	fd, err := unix.MemfdCreate(InitName, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), InitName)
	if _, err := io.Copy(f, self); err != nil {
		f.Close()
		return nil, err
	}
	seals := unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
})

// startInit starts the first process of a pid namespace that the pod's
// containers share, and pins the namespace. The process is the keeper's child:
// it outlives the runner.
//
// A container with SYS_PTRACE can make the init do whatever it likes, so there
// is nothing to take over: no capability and no way to one, no open file, the
// pod's namespaces, and as its root an empty read-only directory of its own
// mount namespace. It gets that root from the thread that started it, which
// shares it: a process without capabilities could not leave the host's.
func startInit(p Pod) error {
	self, err := sealedSelf()
	if err != nil {
		return fmt.Errorf("seal the init of a shared pid namespace: %w", err)
	}
	// What a crashed try has left is all in the init's cgroup.
	if err := clearPod(Pod{InitCgroup: p.InitCgroup, PIDNS: p.PIDNS, Init: p.Init}); err != nil {
		return err
	}
	if err := os.MkdirAll(p.Init, 0o700); err != nil {
		return err
	}
	var pid int
	err = inThread(func() error {
		if err := enter(p); err != nil {
			return err
		}
		if err := confine(p.Init); err != nil {
			return err
		}
		i, err := startConfined(self)
		if err != nil {
			return err
		}
		if err := cgroup.Make(p.InitCgroup, i.pid); err != nil {
			i.drop()
			return err
		}
		pid = i.pid
		return i.shutIn()
	})
	if err != nil {
		return fmt.Errorf("start the init of a shared pid namespace: %w", err)
	}
	return pin(p.PIDNS, fmt.Sprintf("/proc/%d/ns/pid", pid))
}

// enter puts the calling thread into the pod's namespaces.
func enter(p Pod) error {
	for _, path := range []string{p.NetNS, p.IPCNS, p.UTSNS} {
		if path == "" {
			continue
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		err = unix.Setns(int(f.Fd()), 0)
		f.Close()
		if err != nil {
			return fmt.Errorf("enter %s: %w", path, err)
		}
	}
	return nil
}

// confine puts the calling thread where the init is to be, but for the root: the
// working directory, root, becomes that.
func confine(root string) error {
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	flags := uintptr(unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC)
	if err := unix.Mount("none", root, "tmpfs", flags, "size=4k,mode=555"); err != nil {
		return fmt.Errorf("mount empty root: %w", err)
	}
	if err := unix.Chdir(root); err != nil {
		return err
	}
	// What this thread starts has none of these; the thread keeps its own.
	for c := uintptr(0); ; c++ {
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); errors.Is(err, unix.EINVAL) {
			break // no such capability
		} else if err != nil {
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	return unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
}

// confined is an init that has started and waits to be shut in.
type confined struct {
	pid      int
	up, seal *os.File // our ends of initUp and initSealed
}

// startConfined starts the init from a confined thread.
func startConfined(self *os.File) (*confined, error) {
	up, theirs, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	sealed, seal, err := os.Pipe()
	if err != nil {
		up.Close()
		return nil, err
	}
	defer sealed.Close()
	i := &confined{up: up, seal: seal}
	cmd := exec.Command(fmt.Sprintf("/proc/self/fd/%d", self.Fd()))
	cmd.Args = []string{InitName}
	// The Go runtime would keep files of the host's /sys open.
	cmd.Env = []string{"GODEBUG=containermaxprocs=0"}
	cmd.Dir = "/"
	cmd.ExtraFiles = []*os.File{theirs, sealed}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid:     true,
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_PARENT,
	}
	if err := spawn(cmd, 0); err != nil {
		i.drop()
		return nil, err
	}
	i.pid = cmd.Process.Pid
	_ = cmd.Process.Release() // the keeper reaps it
	return i, nil
}

// drop gives the init up: unless it is shut in, it ends.
func (i *confined) drop() {
	i.up.Close()
	i.seal.Close()
}

// shutIn makes the working directory the root of the init and of the thread
// that started it, which calls this.
func (i *confined) shutIn() error {
	defer i.drop()
	if n, err := i.up.Read(make([]byte, 1)); n != 1 {
		return fmt.Errorf("it did not come up: %w", err)
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("enter empty root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leave the host's root: %w", err)
	}
	if _, err := i.seal.Write([]byte{1}); err != nil {
		return err
	}
	if n, err := i.up.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		return fmt.Errorf("it did not close its files: %w", err)
	}
	return nil
}

// Init is the first process of a shared pid namespace: it reaps and does nothing
// else. It is not dumpable, so that only SYS_PTRACE looks into it. It uses no
// os.File: the Go runtime would open an epoll for it.
func Init() error {
	if os.Getpid() != 1 {
		return ErrUsage
	}
	signal.Ignore() // every signal; ignoring SIGCHLD reaps
	if err := setName(InitName); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return err
	}
	if _, err := unix.Write(initUp, []byte{1}); err != nil {
		return err
	}
	if n, err := unix.Read(initSealed, make([]byte, 1)); n != 1 {
		return fmt.Errorf("shut in: the runner has died: %w", err)
	}
	for _, fd := range []int{0, 1, 2, initSealed, initUp} {
		unix.Close(fd)
	}
	for {
		_ = unix.Pause()
	}
}

// setName names the process, whichever of its threads this is: PR_SET_NAME would
// name the thread. A process that is not dumpable may not.
func setName(name string) error {
	fd, err := unix.Open("/proc/self/comm", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("name the process: %w", err)
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, []byte(name)); err != nil {
		return fmt.Errorf("name the process: %w", err)
	}
	return nil
}
