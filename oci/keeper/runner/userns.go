package runner

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"syscall"

	"berth/oci/cgroup"
	"berth/oci/keeper"

	"golang.org/x/sys/unix"
)

// UserNSName is argv[0] of the process that a user namespace and what it owns
// are made with; the keeper's binary is UserNS then.
const UserNSName = "berth-userns"

// Descriptors that it starts with. Both carry JSON values.
const (
	userNSOrders  = 3 // order, then true for each answer; its end: nothing more is wanted
	userNSAnswers = 4 // answer: one when the namespaces are set up, one when the init is shut in
)

// order says what the process sets up in its namespaces.
type order struct {
	Pod  Pod      `json:"pod"`
	Pass []string `json:"pass"` // directories that the namespace's root must be able to pass
}

type answer struct {
	Init    int      `json:"init"` // pid, 0 without one
	Refused *Refusal `json:"refused,omitempty"`
	Err     string   `json:"err,omitempty"`
}

// kind is a type of namespace, by its name below /proc/PID/ns, and where the pod's
// is pinned.
type kind struct{ path, name string }

// kinds are the namespaces that p has of its own; net comes last.
func (p Pod) kinds() []kind {
	all := []kind{{p.UserNS, "user"}, {p.IPCNS, "ipc"}, {p.UTSNS, "uts"}, {p.PIDNS, "pid"}, {p.NetNS, "net"}}
	return slices.DeleteFunc(all, func(k kind) bool { return k.path == "" })
}

// makeUserNamespaces is makeNamespaces for a pod with a user namespace, which
// owns all others, the pid namespace with its init too: a runtime could mount
// neither sysfs nor mqueue else. All are made together or not at all; net's pin
// comes last.
func makeUserNamespaces(p Pod) error {
	kinds := p.kinds()
	if !slices.ContainsFunc(kinds, func(k kind) bool { return !pinned(k.path) }) {
		return nil
	}
	// Half of a crashed try.
	if err := clearPod(Pod{UserNS: p.UserNS, IPCNS: p.IPCNS, UTSNS: p.UTSNS, PIDNS: p.PIDNS, NetNS: p.NetNS, InitCgroup: p.InitCgroup, Init: p.Init}); err != nil {
		return err
	}
	if p.PIDNS != "" {
		if err := makeInitRoot(p); err != nil {
			return err
		}
	}
	u, err := startUserNS(p.UIDs, p.GIDs, unix.CLONE_NEWNET|unix.CLONE_NEWIPC|unix.CLONE_NEWUTS)
	if err != nil {
		return fmt.Errorf("make namespaces of pod %s: %w", p.ID, err)
	}
	defer u.close()
	keeper.At("userns started")
	if err := u.setUp(p, kinds); err != nil {
		return err
	}
	keeper.At("userns finished")
	for _, k := range kinds {
		if err := pin(k.path, fmt.Sprintf("/proc/self/fd/%d", u.ns[k.name].Fd())); err != nil {
			return err
		}
		keeper.At("userns pinned")
	}
	return nil
}

// makeInitRoot makes the directory that the namespace's root mounts the init's
// empty root on.
func makeInitRoot(p Pod) error {
	if err := os.MkdirAll(p.Init, 0o700); err != nil {
		return err
	}
	return os.Lchown(p.Init, int(p.UIDs.Host), int(p.GIDs.Host))
}

// userNS is the process in a user namespace that is being made.
type userNS struct {
	pid     int
	orders  *json.Encoder
	answers *json.Decoder
	pipes   []*os.File
	ns      map[string]*os.File // opened so far, by type
}

// startUserNS starts a process in a new user namespace and in the namespaces of
// flags, which it owns. It becomes the keeper's child, as an init that it starts
// must: that one outlives the runner. It ends when it is closed, or the runner
// dies.
func startUserNS(uids, gids IDs, flags uintptr) (*userNS, error) {
	self, err := sealedSelf()
	if err != nil {
		return nil, err
	}
	theirOrders, orders, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer theirOrders.Close()
	answers, theirAnswers, err := os.Pipe()
	if err != nil {
		orders.Close()
		return nil, err
	}
	defer theirAnswers.Close()
	cmd := exec.Command(fmt.Sprintf("/proc/self/fd/%d", self.Fd()))
	cmd.Args = []string{UserNSName}
	cmd.Env = []string{"GODEBUG=containermaxprocs=0"}
	cmd.Dir = "/"
	cmd.ExtraFiles = []*os.File{theirOrders, theirAnswers}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid:                     true,
		Cloneflags:                 unix.CLONE_NEWUSER | unix.CLONE_PARENT | flags,
		UidMappings:                []syscall.SysProcIDMap{uids.mapping()},
		GidMappings:                []syscall.SysProcIDMap{gids.mapping()},
		GidMappingsEnableSetgroups: true,
		Credential:                 &syscall.Credential{}, // the namespace's root
	}
	if err := spawn(cmd, 0); err != nil {
		orders.Close()
		answers.Close()
		return nil, fmt.Errorf("make user namespace: %w", err)
	}
	u := &userNS{
		pid: cmd.Process.Pid, pipes: []*os.File{orders, answers}, ns: map[string]*os.File{},
		orders: json.NewEncoder(orders), answers: json.NewDecoder(answers),
	}
	_ = cmd.Process.Release() // the keeper reaps it
	return u, nil
}

func (i IDs) mapping() syscall.SysProcIDMap {
	return syscall.SysProcIDMap{ContainerID: 0, HostID: int(i.Host), Size: int(i.Size)}
}

// setUp lets the process set up p's namespaces, and opens them.
func (u *userNS) setUp(p Pod, kinds []kind) error {
	init, err := u.order(order{Pod: p})
	if err != nil {
		return err
	}
	keeper.At("userns set up")
	for _, k := range kinds {
		pid := u.pid
		if k.name == "pid" {
			pid = init
		}
		if err := u.open(pid, k.name); err != nil {
			return err
		}
	}
	if init != 0 {
		if err := cgroup.Make(p.InitCgroup, init); err != nil {
			return err
		}
	}
	keeper.At("userns grouped")
	return u.goOn()
}

// order lets the process set up its namespaces.
func (u *userNS) order(o order) (init int, err error) {
	if err := u.orders.Encode(o); err != nil {
		return 0, fmt.Errorf("reach the process in the user namespace: %w", err)
	}
	return u.answer()
}

// goOn lets the process finish. Its answer tells that it has lived until now: what
// was opened below its pid before is its own.
func (u *userNS) goOn() error {
	if err := u.orders.Encode(true); err != nil {
		return fmt.Errorf("reach the process in the user namespace: %w", err)
	}
	_, err := u.answer()
	return err
}

func (u *userNS) answer() (init int, err error) {
	var a answer
	if err := u.answers.Decode(&a); err != nil {
		return 0, fmt.Errorf("the process in the user namespace has ended: %w", err)
	}
	if a.Refused != nil {
		return 0, a.Refused
	}
	if a.Err != "" {
		return 0, errors.New(a.Err)
	}
	return a.Init, nil
}

// open opens a namespace of pid; goOn tells whether it is the right one.
func (u *userNS) open(pid int, name string) error {
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", pid, name))
	if err != nil {
		return err
	}
	u.ns[name] = f
	return nil
}

func (u *userNS) close() {
	closeFiles(u.pipes)
	for _, f := range u.ns {
		f.Close()
	}
}

// UserNS is the process in a new user namespace, as its root. What it writes and
// starts is by right of the namespace, not of the host: sysctls of an ipc
// namespace take nothing from the host's root.
func UserNS() error {
	orders := json.NewDecoder(os.NewFile(userNSOrders, "orders"))
	answers := json.NewEncoder(os.NewFile(userNSAnswers, "answers"))
	unix.CloseOnExec(userNSOrders)
	unix.CloseOnExec(userNSAnswers)
	var o order
	if err := orders.Decode(&o); err != nil {
		return ErrUsage
	}
	say := func(a answer, err error) error {
		if !errors.As(err, &a.Refused) && err != nil {
			a.Err = err.Error()
		}
		return errors.Join(err, answers.Encode(a))
	}
	err := pass(o.Pass)
	if err == nil {
		err = setUp(o.Pod)
	}
	if o.Pod.PIDNS == "" || err != nil {
		if err := say(answer{}, err); err != nil {
			return err
		}
		return lastOrder(orders, func() error { return say(answer{}, nil) })
	}
	// One thread for both halves of the start: the init shares its root.
	return inThread(func() error {
		i, err := startInside(o.Pod.Init)
		if err != nil {
			return say(answer{}, fmt.Errorf("start the init of a shared pid namespace: %w", err))
		}
		if err := say(answer{Init: i.pid}, nil); err != nil {
			return err
		}
		return lastOrder(orders, func() error { return say(answer{}, i.shutIn()) })
	})
}

// lastOrder does do when it is asked to, and waits until it is not needed any
// more.
func lastOrder(orders *json.Decoder, do func() error) error {
	var goOn bool
	err := orders.Decode(&goOn)
	if err == nil {
		err = do()
	}
	if err == nil {
		err = orders.Decode(&goOn)
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// startInside starts an init with an empty root at root from the calling thread,
// whose process is in the pod's namespaces.
func startInside(root string) (*confined, error) {
	self, err := os.Open("/proc/self/exe") // sealed
	if err != nil {
		return nil, err
	}
	defer self.Close()
	if err := confine(root); err != nil {
		return nil, err
	}
	return startConfined(self)
}

// pass fails for a directory that the calling process cannot go through.
func pass(dirs []string) error {
	for _, dir := range dirs {
		if err := unix.Access(dir, unix.X_OK); err != nil {
			return fmt.Errorf("the root of a user namespace cannot pass %s: %w", dir, err)
		}
	}
	return nil
}
