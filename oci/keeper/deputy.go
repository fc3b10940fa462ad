package keeper

import (
	"fmt"
	"iter"
	"maps"
	"os"
	"slices"
	"sync"

	"berth/oci/keeper/wire"

	"golang.org/x/sys/unix"
)

// Deputy is how the runner stands in for a keeper that has died. While the
// keeper lives, the deputy only holds copies of what the keeper holds. From
// Orphaned on it waits for the processes, writes their exit records, and answers
// the next keeper, which takes everything over. The exported fields are set
// before the first call.
type Deputy struct {
	Logf func(format string, args ...any)
	// Ended is called, after Orphaned, when a process has ended and its exit
	// record is written.
	Ended func(State)

	mu        sync.Mutex
	orphaned  bool
	processes map[string]*process
}

// Keep takes over the state of a process and copies of the files that s.Files
// names. They take the place of what was held.
func (d *Deputy) Keep(s State, files []*os.File) error {
	if s.Gone {
		d.Forget(s.ID)
		return nil
	}
	copies := make([]*os.File, len(files))
	for i, f := range files {
		var err error
		if copies[i], err = dup(f); err != nil {
			wire.CloseAll(copies)
			return fmt.Errorf("keep %s of %s: %w", s.Files[i], s.ID, err)
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	p := d.processes[s.ID]
	if p == nil {
		p = &process{}
		if d.processes == nil {
			d.processes = make(map[string]*process)
		}
		d.processes[s.ID] = p
	}
	for _, h := range p.files {
		if !ofBirth(h.name) || s.Pid != 0 || slices.Contains(s.Files, h.name) {
			continue
		}
		if pidfd, err := dup(h.file); err == nil { // the keeper is about to be told
			s.Files, copies = append(s.Files, h.name), append(copies, pidfd)
		}
	}
	p.State = s
	p.holdAll(s.Files, copies)
	if d.orphaned {
		d.wait(p)
	}
	return nil
}

// Begin notes that a runtime command is about to run for a process.
func (d *Deputy) Begin(id string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if p := d.processes[id]; p != nil {
		p.InFlight = true
	}
}

// Watch watches the start of a process until stop is called: it is held before
// its program begins. tell is given what is to be put to the keeper as well.
func (d *Deputy) Watch(id string, tell func(put Put, f *os.File)) (stop func()) {
	var s Spec
	d.mu.Lock()
	if p := d.processes[id]; p != nil {
		s = p.Spec
	}
	d.mu.Unlock()
	stop, err := watchBirth(s, func(name string, pidfd *os.File) {
		defer pidfd.Close()
		kept, err := dup(pidfd)
		if err != nil {
			d.Logf("keep %s of %s: %v", name, id, err)
			return
		}
		d.mu.Lock()
		p := d.processes[id]
		if p == nil || p.Pid != 0 {
			d.mu.Unlock()
			kept.Close()
			return
		}
		p.hold(name, kept)
		d.mu.Unlock()
		tell(Put{ID: id, Name: name}, pidfd)
	})
	if err != nil {
		d.Logf("%v", err)
	}
	return stop
}

// Born tells which process a runtime command has started, before the keeper is
// told of it: its exit code is not lost when the keeper is not there to be told.
// It returns a pidfd of it, or nil.
func (d *Deputy) Born(id string) *os.File {
	d.mu.Lock()
	defer d.mu.Unlock()
	p := d.processes[id]
	if p == nil {
		return nil
	}
	if pid := ReadPid(p.Dir); pid != 0 && p.file(FilePidfd) == nil {
		p.own(pid)
		if p.file(FilePidfd) == nil {
			p.hold(FilePidfd, openOwn(p.Spec))
		}
		if d.orphaned {
			d.wait(p)
		}
	}
	pidfd := p.file(FilePidfd)
	if pidfd == nil {
		return nil
	}
	pidfd, _ = dup(pidfd)
	return pidfd
}

// Close lets go of one file.
func (d *Deputy) Close(id, name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if p := d.processes[id]; p != nil {
		p.hold(name, nil)
	}
}

// Forget lets go of a process.
func (d *Deputy) Forget(id string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if p := d.processes[id]; p != nil {
		p.close()
		delete(d.processes, id)
	}
}

// Idle reports that nothing is held of a process that has begun, or may have. Of one
// that is only expected, whoever wants it begun tells the next keeper.
func (d *Deputy) Idle() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, p := range d.processes {
		if p.Pid != 0 || p.InFlight || p.file(FilePidfd) != nil {
			return false
		}
	}
	return true
}

// Orphaned is called when the keeper has died.
func (d *Deputy) Orphaned() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.orphaned = true
	for _, p := range d.processes {
		d.wait(p)
	}
}

// wait writes p's exit record when p has ended, if p has begun. It is called with
// mu held.
func (d *Deputy) wait(p *process) {
	pidfd := p.file(FilePidfd)
	if pidfd == nil {
		return
	}
	pid := p.Pid
	if pid == 0 { // the keeper was not told
		pid = ReadPid(p.Dir)
	}
	go func() {
		if e, ok := awaitExit(pidfd, pid); ok {
			At("exit seen alone")
			d.record(p, e)
		}
	}()
}

func (d *Deputy) record(p *process, e Exit) {
	d.mu.Lock()
	_, err := ReadExit(p.Dir)
	p.recorded = err == nil // by the keeper, before it died
	err = p.end(e)
	s := p.State
	p.Exit = nil // the next keeper looks for itself
	if f := p.file(FilePidfd); f != nil && err == nil {
		_, _ = waitPidfd(number(f), unix.WEXITED|unix.WNOHANG) // if it is ours
	}
	d.mu.Unlock()
	if err != nil {
		d.Logf("process %s: write exit record: %v: the next keeper writes it", p.ID, err)
		return
	}
	d.Ended(s)
}

// Answer answers a keeper's OpHello and OpGet.
func (d *Deputy) Answer(r *wire.Request) {
	var id ID
	if err := r.Decode(&id); err != nil {
		r.Reply(nil, err)
		return
	}
	if r.Op == OpHello {
		r.Reply(Hello{IDs: d.ids(id.ID)}, nil)
		return
	}
	s, files, err := d.get(id.ID)
	r.Reply(s, err, files...)
	wire.CloseAll(files)
}

func (d *Deputy) get(id string) (State, []*os.File, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	p := d.processes[id]
	if p == nil {
		return State{}, nil, fmt.Errorf("no process %q", id)
	}
	return p.get()
}

func (d *Deputy) ids(after string) []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return page(maps.Keys(d.processes), after)
}

// page is the part of Hello.IDs that begins after an ID.
func page(ids iter.Seq[string], after string) []string {
	var list []string
	for id := range ids {
		if id > after {
			list = append(list, id)
		}
	}
	slices.Sort(list)
	return list[:min(len(list), maxIDs)]
}
