package oci

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"
)

// Guards against a log that the keeper holds and the caller, told of an error,
// removes: the output goes to one of the two, and the caller knows which.
func TestReopenLogFailsWhole(t *testing.T) {
	n := newNode(t)
	r := n.runtime("crun")
	c := n.container(r, "while read x; do echo $x; done")
	c.stdin = true
	c.start()
	c.write("before\n")
	c.awaitOutput("before\n")
	if err := os.Rename(c.log, c.log+".old"); err != nil {
		t.Fatal(err)
	}
	goOn := pause(t, n.hello().Runner)
	log := c.openLog()
	defer log.Close()
	ctx, cancel := context.WithTimeout(n.ctx, 100*time.Millisecond)
	defer cancel()
	failed := make(chan error, 1)
	go func() { failed <- r.ReopenLog(ctx, c.Container, log) }()
	<-ctx.Done()
	goOn()
	if err := <-failed; err == nil {
		t.Fatal("it was reopened by a runner that stood still")
	}
	// As a kubelet does that was told of an error.
	if err := os.Rename(c.log+".old", c.log); err != nil {
		t.Fatal(err)
	}
	c.write("after\n")
	c.awaitOutput("after\n")
	kill(t, n.hello().Runner) // the next one takes the keeper's
	c.write("at last\n")
	c.awaitOutput("at last\n")
	if out, _ := c.output(); !strings.HasPrefix(out, "before\n") {
		t.Errorf("output %q", out)
	}
}
