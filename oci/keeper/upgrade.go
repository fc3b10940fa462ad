package keeper

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// stateVar names the descriptor, inherited by an upgraded keeper, from which it
// reads what its predecessor knew.
const stateVar = "BERTH_KEEPER_STATE"

// saved is a keeper's state across execve. Numbers of descriptors stay valid.
type saved struct {
	Instance       string         `json:"instance"`
	Lock           int            `json:"lock"`
	Listener       int            `json:"listener"`
	RunnerListener int            `json:"runnerListener"`
	Processes      []savedProcess `json:"processes"`
}

type savedProcess struct {
	State State          `json:"state"`
	FDs   map[string]int `json:"fds"`
}

// upgrade replaces the keeper's program by the one at path; pid, children and
// held files stay. It returns only when that failed, and then all that has
// changed is the runner.
func (k *keeper) upgrade(path string) error {
	if err := unix.Access(path, unix.X_OK); err != nil {
		return fmt.Errorf("upgrade to %s: %w", path, err)
	}
	if k.orphan != nil {
		return fmt.Errorf("upgrade to %s: the last keeper's runner has not left yet: try again", path)
	}
	for _, p := range k.processes {
		if p.InFlight {
			return fmt.Errorf("upgrade to %s: a runtime command is in flight: try again", path)
		}
	}
	state, inherit, err := k.save()
	if err != nil {
		return fmt.Errorf("upgrade to %s: %w", path, err)
	}
	defer state.Close()
	ignoreSignals()
	defer CatchSignals()
	cloexec(inherit, false)
	if k.runner != nil {
		// It would live on beside its successor.
		_ = k.runner.Process.Kill()
	}
	env := []string{"PATH=" + os.Getenv("PATH"), stateVar + "=" + strconv.Itoa(number(state))}
	err = unix.Exec(path, []string{os.Args[0], k.run}, env)
	cloexec(inherit, true)
	return fmt.Errorf("upgrade to %s: %w", path, err)
}

// save writes the state to a memory file and lists the descriptors to inherit.
func (k *keeper) save() (*os.File, []int, error) {
	s := saved{Instance: k.instance, Lock: k.lock}
	inherit := []int{k.lock}
	for _, l := range []struct {
		listener *net.UnixListener
		fd       *int
	}{{k.listener, &s.Listener}, {k.runnerListener, &s.RunnerListener}} {
		raw, err := l.listener.SyscallConn()
		if err != nil {
			return nil, nil, err
		}
		if err := raw.Control(func(fd uintptr) { *l.fd = int(fd) }); err != nil {
			return nil, nil, err
		}
		inherit = append(inherit, *l.fd)
	}
	for _, p := range k.processes {
		sp := savedProcess{State: p.State, FDs: make(map[string]int)}
		for _, h := range p.files {
			sp.FDs[h.name] = number(h.file)
			inherit = append(inherit, number(h.file))
		}
		s.Processes = append(s.Processes, sp)
	}
	fd, err := unix.MemfdCreate("berth-keeper", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, nil, err
	}
	f := os.NewFile(uintptr(fd), "state")
	if err := json.NewEncoder(f).Encode(s); err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, append(inherit, fd), nil
}

// resume takes over what an upgrade left; false if there was none.
func (k *keeper) resume() (bool, error) {
	v := os.Getenv(stateVar)
	if v == "" {
		return false, nil
	}
	os.Unsetenv(stateVar)
	fd, err := strconv.Atoi(v)
	if err != nil {
		return false, fmt.Errorf("%s=%s: %w", stateVar, v, err)
	}
	f := os.NewFile(uintptr(fd), "state")
	defer f.Close()
	if _, err := f.Seek(0, 0); err != nil {
		return false, fmt.Errorf("read state: %w", err)
	}
	var s saved
	if err := json.NewDecoder(f).Decode(&s); err != nil {
		return false, fmt.Errorf("read state: %w", err)
	}
	k.instance, k.lock = s.Instance, s.Lock
	unix.CloseOnExec(k.lock)
	if k.listener, err = inheritedListener(s.Listener); err != nil {
		return false, err
	}
	if k.runnerListener, err = inheritedListener(s.RunnerListener); err != nil {
		return false, err
	}
	for _, sp := range s.Processes {
		p := &process{State: sp.State}
		for name, fd := range sp.FDs {
			unix.CloseOnExec(fd)
			p.hold(name, os.NewFile(uintptr(fd), name))
		}
		k.takeIn(p)
	}
	return true, nil
}

// takeIn makes p known, as another keeper has known it.
func (k *keeper) takeIn(p *process) {
	k.processes[p.ID] = p
	_, err := ReadExit(p.Dir)
	p.recorded = err == nil
	if p.Pid != 0 && !p.Gone && p.file(FilePidfd) != nil {
		k.follow(p)
	}
}

func inheritedListener(fd int) (*net.UnixListener, error) {
	f := os.NewFile(uintptr(fd), "listener")
	defer f.Close() // FileListener duplicates it
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("take over listener: %w", err)
	}
	ul := l.(*net.UnixListener)
	ul.SetUnlinkOnClose(false)
	return ul, nil
}

// cloexec sets or clears close-on-exec.
func cloexec(fds []int, on bool) {
	flag := 0
	if on {
		flag = unix.FD_CLOEXEC
	}
	for _, fd := range fds {
		_, _ = unix.FcntlInt(uintptr(fd), unix.F_SETFD, flag)
	}
}
