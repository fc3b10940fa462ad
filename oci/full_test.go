package oci

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"berth/oci/keeper"

	"golang.org/x/sys/unix"
)

// A run directory without room for an exit record. Guards against a code that stays
// in memory only, where the end of our processes would lose it.

// fullNode is a node whose containers' directories are on a disk that can be full.
func fullNode(t *testing.T) (n *node, fill, empty func()) {
	t.Helper()
	n = newNode(t)
	disk := filepath.Join(n.run, "pods")
	if err := errors.Join(os.Mkdir(disk, 0o711), unix.Mount("tmpfs", disk, "tmpfs", 0, "mode=711,size=256k")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(disk, 0); err != nil {
			t.Error(err)
		}
	})
	ballast := filepath.Join(disk, "ballast")
	fill = func() {
		t.Helper()
		if err := os.WriteFile(ballast, make([]byte, 256<<10), 0o600); !errors.Is(err, unix.ENOSPC) {
			t.Fatalf("fill the disk: %v", err)
		}
	}
	empty = func() {
		t.Helper()
		if err := os.Remove(ballast); err != nil {
			t.Fatal(err)
		}
	}
	return n, fill, empty
}

// recorded is whether the container's exit record is there.
func (c *container) recorded() bool {
	c.t.Helper()
	e, err := keeper.ReadExit(c.Dir)
	if err == nil && e.Code != 7 {
		c.t.Errorf("the exit record says %+v", e)
	}
	return err == nil
}

// endFull starts a container and lets it end, with exit code 7, on a full disk.
func (n *node) endFull(fill func()) (c *container) {
	n.t.Helper()
	c = n.container(n.runtime("crun"), "read x; exit 7")
	c.stdin = true
	c.start()
	fill()
	c.write("go\n")
	return c
}

// unrecorded fails if the container has an exit record.
func (c *container) unrecorded() {
	c.t.Helper()
	if c.recorded() {
		c.t.Error("the disk was not full")
	}
}

// unrecordedEnd waits for the end, which is told although it is not recorded.
func (c *container) unrecordedEnd() {
	c.t.Helper()
	if code := c.wait(); code != 7 {
		c.t.Errorf("exit code %d, want 7", code)
	}
	c.unrecorded()
}

func TestExitRecordIsTriedAgainWhenDrained(t *testing.T) {
	n, fill, empty := fullNode(t)
	var goOn func()
	c := n.endFull(func() {
		goOn = pause(t, n.hello().Runner) // it drains nothing
		fill()
	})
	await(t, "the keeper has seen the end", func() bool {
		b, err := os.ReadFile(filepath.Join(n.run, "keeper.log"))
		return err == nil && bytes.Contains(b, []byte("write exit record"))
	})
	c.unrecorded()
	empty()
	goOn()
	if code := c.wait(); code != 7 {
		t.Errorf("exit code %d, want 7", code)
	}
	if !c.recorded() {
		t.Error("the exit record was not written when there was room")
	}
	n.awaitIdle()
}

func TestExitRecordIsTriedAgainAtAnyEnd(t *testing.T) {
	n, fill, empty := fullNode(t)
	c := n.endFull(fill)
	c.unrecordedEnd()
	if err := n.keeper.Upgrade(n.ctx, self(t)); err != nil {
		t.Fatal(err)
	}
	upgraded := n.hello() // it has tried once more
	c.unrecorded()
	empty()
	kill(t, upgraded.Runner) // whatever ends, the keeper looks again
	await(t, "the exit record is written", c.recorded)
	n.awaitIdle()
}

func TestUnrecordedExitIsRemoved(t *testing.T) {
	n, fill, empty := fullNode(t)
	c := n.endFull(fill)
	c.unrecordedEnd()
	c.remove()
	n.awaitIdle()
	n.check()
	empty()
}
