package runner

import (
	"os"

	"berth/oci/keeper"
	"berth/oci/keeper/wire"

	"golang.org/x/sys/unix"
)

// standIn is called when the keeper has died. What it held stays open here,
// output is read on, and exit records are written, until the next keeper has
// taken over or nothing is left to hold.
func (r *runner) standIn() {
	keeper.At("orphaned")
	// What a runtime under way starts has ended, perhaps, when its pid is known:
	// it stays a zombie of ours as long as we live, or until its code is recorded.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		r.logger.Printf("become subreaper: %v", err)
	}
	r.deputy.Orphaned()
	r.leaveIfUnneeded()
}

// leaveIfUnneeded ends an orphan that holds nothing, or that the next keeper
// cannot reach: it did not wait for this one, and has made a socket of its own.
func (r *runner) leaveIfUnneeded() {
	select {
	case <-r.keeper.Done():
	default:
		return
	}
	now, err := os.Lstat(keeper.RunnerSocket(r.run))
	if err != nil || !os.SameFile(r.socket, now) || r.deputy.Idle() {
		r.leave()
	}
}

// endedAlone is told of a process that has ended while there is no keeper: its
// exit record is written. When its output is in its log too, nobody needs to hold
// it any more. Output that is not read yet, since the start was under way, stays
// for the next runner.
func (r *runner) endedAlone(s keeper.State) {
	r.awaitCommand(s.ID)
	if s.Output {
		r.killRest(s)
		if !r.out.has(s.ID) {
			return
		}
		r.out.close(r.out.drain(s.ID))
	}
	r.deputy.Forget(s.ID)
	r.leaveIfUnneeded()
}

// handOver answers a keeper that takes over from one that has died.
func (r *runner) handOver(q *wire.Request) {
	<-r.keeper.Done()
	switch q.Op {
	case keeper.OpTakeOver:
		f, err := r.listener.File()
		if err != nil {
			q.Reply(nil, err)
			return
		}
		q.Reply(nil, nil, f)
		f.Close()
	case keeper.OpLeave:
		q.Reply(nil, nil)
		r.leave()
	default:
		r.deputy.Answer(q)
	}
}
