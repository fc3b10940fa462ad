package keeper

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"

	"berth/oci/keeper/wire"

	"golang.org/x/sys/unix"
)

// Descriptors that a runner starts with.
const (
	RunnerKeeperFD   = 3 // socket to the keeper
	RunnerListenerFD = 4 // listening socket of RunnerSocket
)

// RunnerCommand is the argument that makes berth-keeper a runner; the run
// directory follows.
const RunnerCommand = "runner"

// A runner that lives this long is a good one; one that dies sooner is followed
// by another only after a pause, which doubles up to this.
const runnerGood = time.Second

// startRunner starts the runner, and again whenever it ends.
func (k *keeper) startRunner() {
	cmd, peer, err := k.execRunner()
	if err != nil {
		k.logger.Printf("start runner: %v", err)
		k.restartRunner()
		return
	}
	k.runner, k.runnerPeer, k.runnerQueue = cmd, peer, newQueue(peer)
	began := time.Now()
	go func() {
		peer.Serve(k.handle)
		err := cmd.Wait()
		k.events <- func() { k.runnerEnded(cmd, began, err) }
	}()
}

// runnerEnded runs on the loop. Commands in flight stay so: their runtimes may
// go on, and the next runner settles them.
func (k *keeper) runnerEnded(cmd *exec.Cmd, began time.Time, err error) {
	k.logger.Printf("runner %d ended: %v", cmd.Process.Pid, err)
	k.runnerQueue.close()
	k.runner, k.runnerPeer, k.runnerQueue = nil, nil, nil
	if time.Since(began) > runnerGood {
		k.quickDeaths = 0
	}
	k.restartRunner()
}

// restartRunner starts the next one: the first time at once.
func (k *keeper) restartRunner() {
	k.quickDeaths++
	if k.quickDeaths == 1 {
		k.startRunner()
		return
	}
	pause := min(10*time.Millisecond<<min(k.quickDeaths, 10), runnerGood)
	time.AfterFunc(pause, func() { k.events <- k.startRunner })
}

func (k *keeper) execRunner() (*exec.Cmd, *wire.Peer, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make socket pair: %w", err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "runner")
	defer theirs.Close()
	conn, err := wire.FileConn(os.NewFile(uintptr(pair[0]), "runner"))
	if err != nil {
		return nil, nil, err
	}
	listener, err := k.runnerListener.File()
	if err != nil {
		conn.Close()
		return nil, nil, err
	}
	defer listener.Close()
	cmd := exec.Command("/proc/self/exe", RunnerCommand, k.run)
	cmd.Args[0] = "berth-runner"
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = []*os.File{theirs, listener}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	refused, err := startAfresh(cmd)
	if err != nil {
		conn.Close()
		return nil, nil, err
	}
	if refused != nil {
		k.logger.Printf("containers inherit this from the keeper: %v", refused)
	}
	return cmd, wire.NewPeer(conn), nil
}
