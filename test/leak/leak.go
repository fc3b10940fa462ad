package leak

import (
	"fmt"
	"os"
	"testing"
	"time"
)

// grace is how long what is on its way out may take: a goroutine that returns
// after its channel was closed, a process that was killed and not yet reaped.
var grace = 5 * time.Second

// Main runs the tests and exits: with their code, or with 1 when they passed
// and left something behind. It names each thing left, and kills left processes.
func Main(m *testing.M) {
	os.Exit(check(m.Run))
}

// check runs the tests and returns the code to exit with.
func check(run func() int) int {
	startPoller()
	before := take()
	code := run()
	left := settle(func() []string { return take().since(before) })
	if len(left) == 0 {
		return code
	}
	report(left)
	killSince(before)
	return max(code, 1)
}

// startPoller makes the runtime open its epoll files now rather than during the
// tests: they stay open for good.
func startPoller() {
	r, w, err := os.Pipe()
	if err != nil {
		return
	}
	r.Close()
	w.Close()
}

// settle looks again until nothing is left or the grace is over.
func settle(look func() []string) []string {
	deadline := time.After(grace)
	again := time.NewTicker(10 * time.Millisecond)
	defer again.Stop()
	for {
		left := look()
		if len(left) == 0 {
			return nil
		}
		select {
		case <-again.C:
		case <-deadline:
			return left
		}
	}
}

func report(left []string) {
	for _, l := range left {
		fmt.Fprintln(os.Stderr, "leak:", l)
	}
}
