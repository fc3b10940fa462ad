package runner

import (
	"os"
	"os/exec"
	"strconv"
	"sync"
)

// spawning is held for writing while this process has another oom_score_adj than
// its own. A child has its parent's from its first moment.
var spawning sync.RWMutex

// spawn starts cmd with oom_score_adj adj, where this process may set that. All
// programs are started by it.
func spawn(cmd *exec.Cmd, adj int) error {
	if adj == 0 { // our own
		spawning.RLock()
		defer spawning.RUnlock()
		return cmd.Start()
	}
	spawning.Lock()
	defer spawning.Unlock()
	_ = setOOMScoreAdj(adj) // a runtime that cannot set it either says so
	err := cmd.Start()
	_ = setOOMScoreAdj(0) // it could be set when this process began
	return err
}

func setOOMScoreAdj(adj int) error {
	return os.WriteFile("/proc/self/oom_score_adj", []byte(strconv.Itoa(adj)), 0)
}
