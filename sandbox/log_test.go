package sandbox

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func TestReopenLog(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		config := podConfig("a")
		config.LogDirectory = filepath.Join(filepath.Dir(m.run), "logs")
		p, err := m.Run(t.Context(), RunRequest{Config: config})
		if err != nil {
			t.Fatal(err)
		}
		cc := containerConfig("x")
		cc.LogPath = "x.log"
		c, err := p.CreateContainer(t.Context(), cc)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.ReopenLog(t.Context()); !errors.Is(err, ErrNotRunning) {
			t.Errorf("before the start: %v", err)
		}
		m.must("start")
		log := filepath.Join(config.LogDirectory, "x.log")
		if err := os.Rename(log, log+".1"); err != nil {
			t.Fatal(err)
		}
		if err := c.ReopenLog(t.Context()); err != nil {
			t.Error(err)
		}
		if err := os.Rename(log, log+".2"); err != nil {
			t.Fatal(err)
		}
		m.world.stubborn = true
		if err := c.ReopenLog(t.Context()); !errors.Is(err, errInjected) {
			t.Errorf("when the runtime refuses: %v", err)
		}
		if _, err := os.Lstat(log); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("an error left a new file: %v", err)
		}
	})
}
