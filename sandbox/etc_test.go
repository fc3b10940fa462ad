package sandbox

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The containers of a pod that an older Berth made find its files where that has
// put them, and do not write to the filesystem of all records.
func TestFilesOfAnOlderPod(t *testing.T) {
	inBubble(t, func(t *testing.T, m *machine) {
		p, err := m.runPod(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.RemoveAll(p.oci().Files()); err != nil {
			t.Fatal(err)
		}
		c, err := p.CreateContainer(t.Context(), containerConfig("x"))
		if err != nil {
			t.Fatal(err)
		}
		spec, err := c.readSpec()
		if err != nil {
			t.Fatal(err)
		}
		found := 0
		for _, mount := range spec.Mounts {
			if slices.Contains(podFileNames, strings.TrimPrefix(mount.Destination, "/etc/")) {
				found++
				if want := filepath.Join(p.dir, filepath.Base(mount.Destination)); mount.Source != want || !slices.Contains(mount.Options, "ro") {
					t.Errorf("%s: from %s with %q, want %s read-only", mount.Destination, mount.Source, mount.Options, want)
				}
			}
		}
		if found != len(podFileNames) {
			t.Errorf("%d files are mounted", found)
		}
	})
}
