package runner

import (
	"errors"
	"log"
	"os"

	"golang.org/x/sys/unix"
)

// defaultCoreFilter is the kernel's: anonymous memory, ELF headers, private huge
// pages (core(5)).
const defaultCoreFilter = "0x33"

// forgetInherited sets what OCI runtimes, execs and containers inherit from this
// process. What protects the keeper is not for them, and this process may die. The
// keeper has done the same with what belongs to a thread.
func forgetInherited(logger *log.Logger) {
	unix.Umask(0o022)
	if err := setOOMScoreAdj(0); err != nil {
		logger.Printf("reset oom_score_adj: %v", err)
	}
	if err := os.WriteFile("/proc/self/coredump_filter", []byte(defaultCoreFilter), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
		logger.Printf("reset coredump_filter: %v", err) // a kernel without core dumps has none
	}
	if err := unix.Prctl(unix.PR_SET_THP_DISABLE, 0, 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) {
		logger.Printf("allow huge pages: %v", err)
	}
	raiseLimits()
}
