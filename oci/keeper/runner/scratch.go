package runner

import (
	"os"
	"path/filepath"
)

// scratchDir is where runtimes put what they need while they run a command of
// the process in dir. crun mounts its own binary there, to protect it: in /tmp,
// its usual place, that mount stays when it is killed at that moment.
func scratchDir(dir string) string { return filepath.Join(dir, "scratch") }

// dropScratch removes the scratch directory of the process in dir, with what a
// killed runtime left there.
func (r *runner) dropScratch(dir string) {
	scratch := scratchDir(dir)
	left, _ := os.ReadDir(scratch)
	for _, e := range left {
		if err := detach(filepath.Join(scratch, e.Name())); err != nil {
			r.logger.Printf("remove what a runtime left: %v", err)
		}
	}
	if err := os.RemoveAll(scratch); err != nil {
		r.logger.Printf("remove what a runtime left: %v", err)
	}
}
