package oci

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// view gives the container a view with one file, mounted at /name.
func (c *container) view(name string) {
	c.t.Helper()
	dir := c.t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("of "+name), 0o600); err != nil {
		c.t.Fatal(err)
	}
	if c.views == nil {
		c.views = map[string]string{}
	}
	c.views[name] = dir
	c.spec.Mounts = append(c.spec.Mounts, specs.Mount{Destination: "/tmp/" + name, Type: "bind", Source: c.View(name), Options: []string{"rbind", "ro"}})
}

// Each view is at its place, also beside a joined pid namespace, and a start
// that is repeated finds it there.
func TestViews(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		target := n.container(r, "sleep 1000")
		target.start()
		c := n.container(r, "cat /tmp/a/file /tmp/b/file; sleep 1000")
		c.view("a")
		c.view("b")
		c.target = &target.Container
		for i, ns := range c.spec.Linux.Namespaces {
			if ns.Type == specs.PIDNamespace {
				c.spec.Linux.Namespaces[i].Path = c.PIDNS()
			}
		}
		if first, again := c.start(), c.start(); first != again {
			t.Errorf("started twice: %d, %d", first, again)
		}
		c.awaitOutput("of aof b")
		c.remove()
		target.remove()
		n.check()
	})
}

// Whoever dies at whatever step of a start: the views are there for its process,
// and then no more.
func TestKillAStartWithViews(t *testing.T) {
	for _, d := range startSteps {
		t.Run(strings.ReplaceAll(d.String(), " ", "-"), func(t *testing.T) {
			eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
				c := n.container(r, "cat /tmp/a/file; exit 3")
				c.view("a")
				n.willDie(d)
				c.start()
				n.died(d)
				if e, err := r.Wait(n.ctx, c.Container); !errors.Is(err, ErrExitUnknown) && (err != nil || e.Code != 3) {
					t.Errorf("exit code %d, %v, want 3 or unknown", e.Code, err)
				}
				c.remove()
				n.check()
			})
		})
	}
}

// A request has room for as many views as there may be.
func TestMostViews(t *testing.T) {
	n := newNode(t)
	c := n.container(n.runtime("runc"), fmt.Sprintf("cat /tmp/%d/file", MaxViews-1))
	for i := range MaxViews {
		c.view(fmt.Sprint(i))
	}
	c.start()
	if code := c.wait(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	c.remove()
	n.check()
}
