package sandbox

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
)

// The one session of a stdin_once container is remembered: there is no second,
// and a daemon that comes after its end ends the container's input.
func TestStdinOnceIsRemembered(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		p, err := m.runPod(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		config := containerConfig("c")
		config.Stdin, config.StdinOnce = true, true
		c, err := p.CreateContainer(t.Context(), config)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.MayAttach(false, true); !errors.Is(err, ErrNotRunning) {
			t.Errorf("attach before the start: %v", err)
		}
		if err := c.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		ended, end := context.WithCancel(t.Context())
		end()
		attach := func() error {
			return c.Attach(ended, Attach{Stdin: io.NopCloser(strings.NewReader("")), Stdout: io.Discard})
		}
		if err := attach(); !errors.Is(err, context.Canceled) {
			t.Errorf("the first session: %v", err)
		}
		if err := attach(); !errors.Is(err, ErrIllegal) {
			t.Errorf("a second session: %v", err)
		}
		if err := c.MayAttach(false, false); err != nil {
			t.Errorf("one without stdin: %v", err)
		}
		m.crash()
		m.reopen()
		synctest.Wait()
		if again := m.container("c"); again.MayAttach(false, true) == nil {
			t.Error("the next daemon has forgotten it")
		}
		if !slices.Contains(m.world.closed, c.ID()) {
			t.Error("the container's input has no end")
		}
	})
}
