package runner

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"os"
	"sync"

	"berth/oci/cgroup"
	"berth/oci/keeper"
	"berth/oci/keeper/wire"

	"golang.org/x/sys/unix"
)

// runner is the process's state.
type runner struct {
	run    string
	logger *log.Logger
	keeper *wire.Peer
	out    *output

	listener *net.UnixListener // of keeper.RunnerSocket
	socket   os.FileInfo       // its file

	deputy  keeper.Deputy
	serving chan struct{} // closed when out is there
	leaving chan struct{} // closed when this process is to end
	leave   func()        // closes it

	watches []func() // stop the watches of starts that a predecessor has left, which last until takeOver has its own

	taking sync.Mutex // held from asking the keeper for files until they are out's
	asking sync.Mutex // held from asking the keeper for files until the deputy has them; below taking

	mu       sync.Mutex
	commands map[string]*command      // runtime commands under way, by process ID
	pods     map[string]chan struct{} // made or cleared now, by ID; closed at the end
}

// Main is the runner process. It returns when the keeper is gone, and the next
// one has taken over what this process holds.
func Main(run string, logger *log.Logger) error {
	keeper.CatchSignals()
	forgetInherited(logger)
	unix.CloseOnExec(keeper.RunnerKeeperFD)
	unix.CloseOnExec(keeper.RunnerListenerFD)
	conn, err := wire.FileConn(os.NewFile(keeper.RunnerKeeperFD, "keeper"))
	if err != nil {
		return fmt.Errorf("reach the keeper: %w", err)
	}
	listener, err := net.FileListener(os.NewFile(keeper.RunnerListenerFD, "listener"))
	if err != nil {
		return fmt.Errorf("take over the listener: %w", err)
	}
	r := &runner{
		run: run, logger: logger, keeper: wire.NewPeer(conn), listener: listener.(*net.UnixListener),
		serving: make(chan struct{}), leaving: make(chan struct{}),
		commands: make(map[string]*command), pods: make(map[string]chan struct{}),
	}
	r.deputy = keeper.Deputy{Logf: logger.Printf, Ended: r.endedAlone}
	r.leave = sync.OnceFunc(func() { close(r.leaving) })
	if r.socket, err = os.Lstat(keeper.RunnerSocket(run)); err != nil {
		return err
	}
	go r.keeper.Serve(r.notice)
	ids, err := r.hold()
	if err != nil {
		return err
	}
	journal, err := openJournal(keeper.JournalFile(run))
	if err != nil {
		return fmt.Errorf("open journal: %w", err)
	}
	if r.out, err = newOutput(journal, logger); err != nil {
		return err
	}
	r.out.finish()
	close(r.serving)
	if err := r.takeOver(ids); err != nil {
		return err
	}
	for _, stop := range r.watches {
		stop()
	}
	go r.out.loop()
	go r.accept()
	<-r.keeper.Done()
	r.standIn()
	<-r.leaving
	return nil
}

// hold takes copies of all that the keeper holds. Only then may the runner of the
// last keeper, which has the journal, leave.
func (r *runner) hold() (ids []string, err error) {
	var h keeper.Hello
	if err := r.call(keeper.OpHello, nil, &h); err != nil {
		return nil, err
	}
	if ids, err = keeper.AllIDs(context.Background(), r.keeper, h); err != nil {
		return nil, err
	}
	for _, id := range ids {
		s, files, err := r.get(id)
		wire.CloseAll(files)
		if errors.Is(err, wire.ErrLost) {
			return nil, err
		}
		if err == nil && s.InFlight {
			r.watches = append(r.watches, r.watch(id))
		}
	}
	return ids, r.call(keeper.OpReady, nil, nil)
}

// accept serves connections of berthd, and of the next keeper.
func (r *runner) accept() {
	for {
		c, err := r.listener.AcceptUnix()
		if err != nil {
			return
		}
		go func() {
			wire.NewPeer(wire.NewConn(c)).Serve(func(q *wire.Request) { go r.answer(q) })
			r.leaveIfUnneeded()
		}()
	}
}

// answer serves one request on a goroutine of its own.
func (r *runner) answer(q *wire.Request) {
	var (
		body any
		err  error
	)
	switch q.Op {
	case OpRun:
		var c Run
		if err = q.Decode(&c); err == nil {
			body, err = r.join(c, q.Files)
		}
	case OpReopen:
		var c Reopen
		if err = q.Decode(&c); err == nil {
			err = r.reopen(c)
		}
	case OpAttach:
		var c Attach
		if err = q.Decode(&c); err == nil {
			err = r.attach(c, q)
		}
	case OpClear:
		var c Clear
		if err = q.Decode(&c); err == nil {
			err = r.clear(c)
		}
	case OpAwait:
		var c Await
		if err = q.Decode(&c); err == nil {
			r.awaitCommand(c.ID)
			r.waitForStrays(c.Dir, strayTimeout)
		}
	case OpMakePod:
		var p Pod
		if err = q.Decode(&p); err == nil {
			body, err = made(r.alone(p, makePod))
		}
	case OpTuneNetwork:
		var p Pod
		if err = q.Decode(&p); err == nil {
			body, err = made(r.alone(p, tuneNetwork))
		}
	case OpClearPod:
		var p Pod
		if err = q.Decode(&p); err == nil {
			err = r.alone(p, clearPod)
		}
	case keeper.OpTakeOver, keeper.OpHello, keeper.OpGet, keeper.OpLeave:
		r.handOver(q)
		return
	case OpTryUserNS:
		var t TryUserNS
		if err = q.Decode(&t); err == nil {
			err = tryUserNS(t)
		}
	default:
		err = fmt.Errorf("unknown request %q", q.Op)
	}
	wire.CloseAll(q.Files)
	if errors.Is(err, wire.ErrLost) {
		// Without the keeper this process ends before long; the lost connection
		// tells berthd to ask the next one.
		return
	}
	q.Reply(body, err)
}

// made tells a refusal, which is the caller's mistake, from what went wrong.
func made(err error) (Made, error) {
	var refused *Refusal
	if errors.As(err, &refused) {
		return Made{Refused: refused}, nil
	}
	return Made{}, err
}

// notice handles what the keeper tells.
func (r *runner) notice(q *wire.Request) {
	wire.CloseAll(q.Files)
	var closed keeper.Put
	var s keeper.State
	if q.Op == keeper.NoticeClosed {
		if q.Decode(&closed) == nil {
			go r.letGo(func() { r.deputy.Close(closed.ID, closed.Name) })
		}
		return
	}
	if q.Decode(&s) != nil {
		return
	}
	switch q.Op {
	case keeper.NoticeAdopted:
		go r.adopted(s)
	case keeper.NoticeExited:
		go r.exited(s)
	case keeper.NoticeGone:
		go r.letGo(func() { r.deputy.Forget(s.ID) })
	}
}

// letGo makes the deputy let go of what the keeper has let go of. An answer of
// the keeper that is older, and on its way here, comes first.
func (r *runner) letGo(forget func()) {
	r.asking.Lock()
	defer r.asking.Unlock()
	forget()
}

// takeOver goes on with what a predecessor left. The journal's chunk, which
// comes before all that is in the FIFOs, is in its log by now.
func (r *runner) takeOver(ids []string) error {
	for _, id := range ids {
		s, err := r.takeUp(id)
		switch {
		case err != nil: // dropped meanwhile
			r.logger.Print(err)
		case s.InFlight:
			r.settleLeft(s)
		case s.Exit != nil && s.Output && !s.Gone:
			go r.exited(s)
		}
	}
	return nil
}

// takeUp reads the output of a running process unless that is done already.
func (r *runner) takeUp(id string) (keeper.State, error) {
	r.taking.Lock()
	defer r.taking.Unlock()
	s, files, err := r.get(id)
	if err != nil {
		return s, err
	}
	if s.Pid == 0 || !s.Output || s.Gone || r.out.has(id) {
		wire.CloseAll(files)
		return s, nil
	}
	r.out.add(id, s.Files, files)
	r.out.resume(id)
	return s, nil
}

// watch watches the start of a process until stop is called.
func (r *runner) watch(id string) (stop func()) {
	return r.deputy.Watch(id, func(put keeper.Put, f *os.File) {
		if err := r.call(keeper.OpPut, put, nil, f); err != nil {
			r.logger.Print(err)
		}
	})
}

// settleLeft waits for a runtime command that a predecessor left under way.
// Whoever asks for one of the same process waits for it first.
func (r *runner) settleLeft(s keeper.State) {
	stop := r.watch(s.ID)
	cmd := &command{done: make(chan struct{}), left: true}
	r.mu.Lock()
	r.commands[s.ID] = cmd
	r.mu.Unlock()
	go func() {
		defer r.end(s.ID, cmd)
		defer stop()
		r.waitForStrays(s.Dir, strayTimeout)
		err := r.settle(s.ID, &s)
		if err == nil {
			_, err = r.takeUp(s.ID)
		}
		if err != nil {
			r.logger.Print(err)
		}
	}()
}

// adopted is told of a process that the keeper has learned of while it runs.
func (r *runner) adopted(s keeper.State) {
	<-r.serving
	if _, err := r.takeUp(s.ID); err != nil {
		r.logger.Print(err)
	}
}

// exited kills what a process that ended has left in its cgroup, drains its
// output and lets the keeper reap it. It may be called twice.
func (r *runner) exited(s keeper.State) {
	<-r.serving
	r.awaitCommand(s.ID)
	keeper.At("exit told")
	r.killRest(s)
	keeper.At("exit killed")
	if _, err := r.takeUp(s.ID); err != nil {
		r.logger.Print(err)
	}
	out := r.out.drain(s.ID)
	keeper.At("exit emptied")
	if err := r.call(keeper.OpDrained, keeper.ID{ID: s.ID}, nil); err != nil {
		r.logger.Print(err)
	}
	// Not before the keeper knows: nobody may take up what is drained.
	r.out.close(out)
}

// awaitCommand waits for the end of a process's command: its streams are known
// by the time that is settled, and it may have ended before that.
func (r *runner) awaitCommand(id string) {
	r.mu.Lock()
	c := r.commands[id]
	r.mu.Unlock()
	if c != nil {
		<-c.done
	}
}

// killRest kills what a process that has ended has left in its cgroup.
func (r *runner) killRest(s keeper.State) {
	if s.Cgroup == "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), killTimeout)
	defer cancel()
	if err := cgroup.Kill(ctx, s.Cgroup); err != nil {
		r.logger.Printf("process %s ended: %v", s.ID, err)
	}
}

// reopen makes what the keeper holds as the log of a process its log.
func (r *runner) reopen(c Reopen) error {
	keeper.At("reopen asked")
	if _, err := r.takeUp(c.ID); err != nil {
		return err
	}
	r.taking.Lock()
	defer r.taking.Unlock()
	s, files, err := r.get(c.ID)
	if err != nil {
		return err
	}
	for i, name := range s.Files {
		if name == keeper.FileLog {
			r.out.reopen(c.ID, files[i])
		} else {
			files[i].Close()
		}
	}
	keeper.At("reopen done")
	return nil
}

// get asks the keeper for a process, with the files that it holds.
func (r *runner) get(id string) (keeper.State, []*os.File, error) {
	return r.ask(keeper.OpGet, id)
}

func (r *runner) settle(id string, s *keeper.State) error {
	var pidfds []*os.File
	if pidfd := r.deputy.Born(id); pidfd != nil {
		pidfds = append(pidfds, pidfd)
		defer pidfd.Close()
	}
	now, files, err := r.ask(keeper.OpSettle, id, pidfds...)
	wire.CloseAll(files)
	*s = now
	return err
}

// ask asks the keeper something about a process that it answers with its state
// and files; the deputy keeps them.
func (r *runner) ask(op, id string, with ...*os.File) (keeper.State, []*os.File, error) {
	r.asking.Lock()
	defer r.asking.Unlock()
	var s keeper.State
	files, err := r.keeper.Call(context.Background(), op, keeper.ID{ID: id}, &s, with...)
	if err == nil && len(files) != len(s.Files) {
		err = fmt.Errorf("%d files for %d names", len(files), len(s.Files))
	}
	if err == nil {
		err = r.deputy.Keep(s, files)
	}
	if err != nil {
		wire.CloseAll(files)
		return s, nil, fmt.Errorf("%s %s: %w", op, id, err)
	}
	return s, files, nil
}

func (r *runner) call(op string, in, out any, files ...*os.File) error {
	got, err := r.keeper.Call(context.Background(), op, in, out, files...)
	wire.CloseAll(got)
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	return nil
}
