package runner

import (
	"errors"
	"log"
	"path/filepath"

	"berth/oci/keeper"
)

// ErrUsage: the arguments are none of berth-keeper's.
var ErrUsage = errors.New("usage: berth-keeper RUNDIR (an absolute path; berthd starts it)")

// Program is the whole of berth-keeper: which of its processes to be, the
// arguments tell. It returns when that process is to end.
func Program(args []string, logger *log.Logger) error {
	switch {
	case len(args) == 1 && args[0] == InitName:
		return Init()
	case len(args) == 1 && args[0] == UserNSName:
		return UserNS()
	case len(args) == 2 && filepath.IsAbs(args[1]):
		logger.SetPrefix("berth-keeper: ")
		return keeper.Main(args[1], logger)
	case len(args) == 3 && args[1] == keeper.RunnerCommand:
		logger.SetPrefix("berth-runner: ")
		return Main(args[2], logger)
	}
	return ErrUsage
}
