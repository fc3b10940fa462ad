package oci

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// kills is how often each runtime's node is hit.
const kills = 60

// Containers write, are exec'd into and exit, again and again, while the runner,
// the keeper or both are killed, or the keeper is upgraded, at random moments.
// KILL_SEED repeats a run's choices.
func TestKillAtRandom(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if v := os.Getenv("KILL_SEED"); v != "" {
		var err error
		if seed, err = strconv.ParseUint(v, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("KILL_SEED=%d", seed)
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		s := stress{node: n, runtime: r}
		var workers sync.WaitGroup
		for w := range 8 {
			rng := rand.New(rand.NewPCG(seed, uint64(w)))
			workers.Go(func() {
				for first := true; first || !s.over.Load(); first = false {
					s.live(rng)
				}
			})
		}
		s.kill(rand.New(rand.NewPCG(seed, 1<<32)))
		s.over.Store(true)
		workers.Wait()
		t.Logf("%d deaths of a runner, %d of a keeper, %d of both, %d upgrades; %d containers and %d execs, %d of them interrupted; %d lines",
			s.deaths[0], s.deaths[1], s.deaths[2], s.deaths[3], s.containers.Load(), s.execs.Load(), s.interrupted.Load(), s.lines.Load())
		n.check()
	})
}

// stress is one node's.
type stress struct {
	*node
	runtime *Runtime
	deaths  [4]int       // by kind; kill's alone
	over    atomic.Bool  // no more deaths to come
	keepers atomic.Int64 // begun deaths of a keeper

	mu                                    sync.Mutex // guards node.names
	containers, execs, interrupted, lines atomic.Int64
}

// kill ends what rng says, and waits at random in between.
func (s *stress) kill(rng *rand.Rand) {
	for range kills {
		select {
		case <-time.After(time.Duration(rng.IntN(200)) * time.Millisecond):
		case <-s.ctx.Done():
			s.t.Error(s.ctx.Err())
			return
		}
		h, err := s.keeper.Hello(s.ctx)
		if err != nil {
			s.t.Error(err)
			return
		}
		kind := []int{0, 0, 0, 1, 1, 2, 3, 3}[rng.IntN(8)]
		s.deaths[kind]++
		switch kind {
		case 0:
			end(h.Runner)
		case 1:
			s.keepers.Add(1)
			end(h.Pid)
		case 2:
			s.keepers.Add(1)
			end(h.Pid)
			end(h.Runner)
		case 3:
			// Refused while a runtime command is in flight.
			_ = s.keeper.Upgrade(s.ctx, self(s.t))
		}
	}
}

// end kills a process that may have ended by itself.
func end(pid int) {
	if pid > 0 {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}

// live is the life of one container.
func (s *stress) live(rng *rand.Rand) {
	code, count := rng.IntN(256), 100+rng.IntN(2000)
	s.mu.Lock()
	c := s.container(s.runtime, fmt.Sprintf(writers[rng.IntN(len(writers))]+`
		say 0 %d
		read x
		say %[1]d %d
		exit %d`, count, 2*count, code))
	s.mu.Unlock()
	c.stdin = true
	s.containers.Add(1)
	if _, err := c.tryStart(); err != nil {
		s.t.Error(err)
		return
	}
	var execs sync.WaitGroup
	for range 1 + rng.IntN(2) {
		code := rng.IntN(256)
		execs.Go(func() { s.exec(c, code) })
	}
	execs.Wait()
	c.write("go\n")
	c.checkExit(code)
	c.checkLines(2 * count)
	s.lines.Add(int64(4 * count))
	c.remove()
	if err := os.Remove(c.log); err != nil {
		s.t.Error(err)
	}
}

// exec is short: a keeper that dies meanwhile may be the only one to know how it
// ended.
func (s *stress) exec(c *container, code int) {
	before := s.keepers.Load()
	s.execs.Add(1)
	got, out, errs, err := c.exec(fmt.Sprintf("echo out; echo err >&2; exit %d", code))
	if errors.Is(err, ErrInterrupted) && s.keepers.Load() > before {
		s.interrupted.Add(1)
		return
	}
	if err != nil || got != code || out != "out\n" || errs != "err\n" {
		s.t.Errorf("exec: exit code %d, %q, %q, %v, want %d", got, out, errs, err, code)
	}
}

// writers are scripts of a function "say" that writes the lines from $1 up to
// $2: one by one, and in bursts that end in the middle of lines.
var writers = []string{say, `
say() {
	seq $1 $(($2-1)) | sed "s/.*/out & of a talker/"
	seq $1 $(($2-1)) | sed "s/.*/err & of a talker/" >&2
}
`}
