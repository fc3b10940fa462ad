package keeper

import (
	"os"
	"slices"
	"time"

	"berth/oci/cgroup"

	"golang.org/x/sys/unix"
)

// settle is called when the runtime command that may have started p has ended.
// Only now can it be told whether there is a process: the pid file is the only
// source, and its pid cannot have been reused, since only we reap.
func (k *keeper) settle(p *process) {
	At("settle asked")
	if p.Pid == 0 {
		if pid := ReadPid(p.Dir); pid != 0 {
			k.born(p, pid)
		}
	}
	p.InFlight = false
	At("settle done")
	k.reapUnknown()
}

// born is called when the runtime has told p's pid.
func (k *keeper) born(p *process, pid int) {
	// A command that did not begin here began under a keeper that died.
	foreign := p.foreign || !p.InFlight
	p.Pid = pid
	p.own(pid)
	if p.file(FileConsole) != nil {
		if err := k.takeTerminal(p); err != nil {
			k.logger.Printf("process %s: %v", p.ID, err)
		}
	}
	if foreign && p.file(FilePidfd) == nil {
		pidfd := openOwn(p.Spec)
		if pidfd == nil {
			k.seen(p, Exit{Code: -1, At: time.Now()})
			return
		}
		p.hold(FilePidfd, pidfd)
	}
	k.follow(p)
}

// openOwn opens a pidfd of the process whose pid is in s.Dir; nil if it has
// ended. The pid of one whose keeper has died may be another's by now: one that
// is not in the cgroup. A zombie may be in none.
func openOwn(s Spec) *os.File {
	pid := ReadPid(s.Dir)
	if pid == 0 {
		return nil
	}
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil
	}
	pidfd := os.NewFile(uintptr(fd), "pidfd")
	in, err := cgroup.Holds(s.Cgroup, pid) // asked after the pidfd is open
	if err == nil && !in && !readable(fd) || err != nil {
		pidfd.Close()
		return nil
	}
	return pidfd
}

// follow waits for p.Pid to end, by its pidfd.
func (k *keeper) follow(p *process) {
	k.byPid[p.Pid] = p
	delete(k.zombies, p.Pid)
	if p.file(FilePidfd) == nil {
		fd, err := unix.PidfdOpen(p.Pid, unix.PIDFD_NONBLOCK)
		if err != nil {
			// It was never there, or is not ours and was reaped.
			k.logger.Printf("process %s: open pidfd of %d: %v", p.ID, p.Pid, err)
			k.seen(p, Exit{Code: -1, At: time.Now()})
			return
		}
		p.hold(FilePidfd, os.NewFile(uintptr(fd), "pidfd"))
	}
	go k.awaitEnd(p, p.file(FilePidfd))
}

// awaitEnd blocks in the network poller until it can be told how the process
// has ended, or until pidfd is closed. A process of another parent's is readable
// twice: when it ends, and when it was reaped; in between nobody may know.
func (k *keeper) awaitEnd(p *process, pidfd *os.File) {
	if e, ok := awaitExit(pidfd, p.Pid); ok {
		k.events <- func() { k.seen(p, e) }
	}
}

func awaitExit(pidfd *os.File, pid int) (e Exit, ok bool) {
	raw, err := pidfd.SyscallConn()
	if err != nil {
		return e, false
	}
	err = raw.Read(func(fd uintptr) (ok bool) {
		e, ok = peek(int(fd), pid)
		return ok
	})
	return e, err == nil
}

// lookAtProcesses follows up on processes that have ended while it could not be
// told how: a helper of the runtime was their parent still. Its own end brings
// the SIGCHLD that calls this. It also tries again to write exit records.
func (k *keeper) lookAtProcesses() {
	for _, p := range k.byPid {
		k.look(p)
	}
	for _, p := range k.processes {
		_ = p.record()
	}
}

// look records p's end if it has ended.
func (k *keeper) look(p *process) {
	if f := p.file(FilePidfd); f != nil && p.Exit == nil {
		if e, ok := peek(number(f), p.Pid); ok {
			k.seen(p, e)
		}
	}
}

// peek tells how the process behind pidfd has ended, without reaping it: with
// code -1 if nobody can know any more; false while it runs, or while it cannot
// be told yet.
func peek(pidfd, pid int) (Exit, bool) {
	if !readable(pidfd) {
		return Exit{}, false
	}
	isReaped := reaped(pidfd) // asked first: what is not reaped yet may be in a moment
	code, ok := peekExit(pidfd, pid)
	if !ok && isReaped {
		code, ok = -1, true
	}
	return Exit{Code: code, At: time.Now()}, ok
}

// seen records p's end as it was peeked at, or as a keeper that died has
// recorded it.
func (k *keeper) seen(p *process, e Exit) {
	if p.Exit != nil || k.processes[p.ID] != p {
		return // seen already, or dropped
	}
	At("exit peeked")
	if recorded, err := ReadExit(p.Dir); err == nil {
		e, p.recorded = recorded, true
	}
	k.ended(p, e)
}

// ended writes the exit record; after it the code cannot be lost. A run directory
// without room for it leaves the code with us and berthd: the record is tried
// again, when p is gone and whenever a process ends. Then the runner drains the
// output, or, if there is none, p is gone at once.
func (k *keeper) ended(p *process, e Exit) {
	if err := p.end(e); err != nil {
		k.logger.Printf("process %s: write exit record: %v: it is tried again", p.ID, err)
	}
	At("exit recorded")
	if !p.Output {
		k.gone(p)
		return
	}
	k.tellRunner(NoticeExited, p)
}

// end notes how p has ended, and writes its exit record.
func (p *process) end(e Exit) error {
	// Here, since the cgroup may be removed as soon as the exit is known.
	e.OOMKilled = e.OOMKilled || p.Output && cgroup.OOMKills(p.Cgroup) > 0
	e.Refused = e.Refused || p.Output && neverExecuted(p.Pid)
	p.Exit = &e
	return p.record()
}

// record writes p's exit record, unless that is done or p runs.
func (p *process) record() error {
	if p.Exit == nil || p.recorded {
		return nil
	}
	err := WriteExit(p.Dir, *p.Exit)
	p.recorded = err == nil
	return err
}

// tellRunner tells the runner of p. One that is still to come asks for the state
// of each process.
func (k *keeper) tellRunner(op string, p *process) {
	k.runnerQueue.put(op, p.State)
}

// drained is called when p's output is in its log.
func (k *keeper) drained(p *process) {
	if p.Exit != nil && !p.Gone {
		k.gone(p)
	}
}

// gone reaps p and tells the watchers. Where another process is the parent, that
// one reaps it, or it comes to us as an unknown zombie.
func (k *keeper) gone(p *process) {
	p.Gone = true
	At("exit drained")
	_ = p.record() // said already
	if f := p.file(FilePidfd); f != nil {
		_, _ = waitPidfd(number(f), unix.WEXITED|unix.WNOHANG)
	}
	At("exit reaped")
	if k.byPid[p.Pid] == p {
		delete(k.byPid, p.Pid)
	}
	p.close()
	k.tellRunner(NoticeGone, p)
	for _, q := range k.watchers {
		q.put(NoticeGone, p.State)
	}
}

// reapUnknown reaps the zombies that nobody waits for: helpers of runtimes, and
// orphans of containers in the host's pid namespace.
func (k *keeper) reapUnknown() {
	pids := Children(os.Getpid())
	for _, pid := range pids {
		if k.byPid[pid] != nil || k.runner != nil && pid == k.runner.Process.Pid || !isZombie(pid) {
			continue
		}
		seen, ok := k.zombies[pid]
		if !ok {
			seen = k.begun
			k.zombies[pid] = seen
		}
		if !k.inFlightSince(seen) {
			_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil)
		}
	}
	for pid := range k.zombies {
		if !slices.Contains(pids, pid) || !isZombie(pid) {
			delete(k.zombies, pid)
		}
	}
}

// inFlightSince reports a runtime command that is not settled and had begun when
// k.begun was seen.
func (k *keeper) inFlightSince(seen uint64) bool {
	for _, p := range k.processes {
		if p.InFlight && p.begun <= seen {
			return true
		}
	}
	return false
}

// isZombie reports that the child pid has ended and is not reaped.
func isZombie(pid int) bool {
	var si unix.Siginfo
	err := unix.Waitid(unix.P_PID, pid, &si, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
	return err == nil && si.Signo != 0
}
