package oci

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Steps of a user namespace's making, by what is done when the runner dies there,
// or the keeper with it.
var userNSSteps = []death{
	{Step: "userns started"}, {Step: "userns set up"}, {Step: "userns grouped"}, {Step: "userns finished"},
	{Step: "userns pinned"}, {Step: "userns pinned", Skip: 1}, {Step: "userns pinned", Skip: 4},
	{Step: "userns started", Both: true}, {Step: "userns set up", Both: true}, {Step: "userns grouped", Both: true},
	{Step: "userns finished", Both: true}, {Step: "userns pinned", Both: true}, {Step: "userns pinned", Skip: 3, Both: true},
}

// A pod whose maker dies is made by the next one: all of its namespaces belong
// to one user namespace, it has one init, and nobody of the first try is left.
func TestKillTheMakingOfAUserNamespace(t *testing.T) {
	for _, d := range userNSSteps {
		t.Run(strings.ReplaceAll(d.String(), " ", "-"), func(t *testing.T) {
			n := newNode(t)
			r := n.runtime("crun")
			p := n.newPod(r)
			p.Users = testUsers()
			passable(t, p.Dir)
			n.willDie(d)
			n.makePod(r, p)
			n.died(d)
			var user unix.Stat_t
			if err := unix.Stat(p.UserNS(), &user); err != nil {
				t.Fatal(err)
			}
			for path := range namespaces(t, p) {
				if owner := ownerOf(t, path); owner != user.Ino {
					t.Errorf("the owner of %s is user:[%d], want user:[%d]", path, owner, user.Ino)
				}
			}
			init := n.init(p)
			await(t, "the others of the namespaces' making end", func() bool { return len(ofUsers(t, p.Users)) == 1 })
			if left := ofUsers(t, p.Users); len(left) != 1 || left[0] != init.pid {
				t.Errorf("processes %v of the user namespace, want its init, %d", left, init.pid)
			}
			c := n.userMember(r, p, "hostname; id -u")
			c.start()
			c.wait()
			if out, errs := c.output(); out != p.Hostname+"\n0\n" || errs != "" {
				t.Errorf("seen %q, %q", out, errs)
			}
			c.remove()
			n.removePod(r, p)
			await(t, "all processes end", func() bool { return len(ofUsers(t, p.Users)) == 0 })
		})
	}
}

// A removal takes what a maker that died has left at any step.
func TestRemoveAUserNamespaceThatWasMadeByHalf(t *testing.T) {
	for _, d := range userNSSteps {
		if d.Both {
			continue // the same to a removal
		}
		d.Stop = true
		t.Run(strings.ReplaceAll(d.String(), " ", "-"), func(t *testing.T) {
			n := newNode(t)
			r := n.runtime("crun")
			p := n.newPod(r)
			p.Users = testUsers()
			passable(t, p.Dir)
			n.willDie(d)
			runner := n.hello().Runner
			ctx, giveUp := context.WithCancel(n.ctx)
			defer giveUp()
			made := make(chan error, 1)
			go func() { made <- r.MakePod(ctx, p) }()
			await(t, "the runner stops", func() bool { return lookAt(runner).state == "T" })
			n.died(d)
			giveUp()
			// Nil: it was whole a moment before the runner stood still.
			if err := <-made; err != nil && !errors.Is(err, context.Canceled) {
				t.Errorf("got %v, want it cancelled", err)
			}
			kill(t, runner)
			n.removePod(r, p)
			await(t, "all processes end", func() bool { return len(ofUsers(t, p.Users)) == 0 })
		})
	}
}

// ofUsers are the processes of the namespace's root.
func ofUsers(t *testing.T, u *UserNamespace) (pids []int) {
	t.Helper()
	all, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range all {
		var pid int
		if _, err := fmt.Sscan(d.Name(), &pid); err != nil {
			continue
		}
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err == nil && strings.Contains(string(status), fmt.Sprintf("\nUid:\t%d\t", u.UIDs.Host)) && !strings.Contains(string(status), "State:\tZ") {
			pids = append(pids, pid)
		}
	}
	return pids
}
