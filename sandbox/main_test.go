package sandbox

import (
	"errors"
	"flag"
	"log"
	"os"
	"syscall"
	"testing"

	"berth/oci/keeper"
	"berth/oci/keeper/runner"
	"berth/test/leak"
)

var update = flag.Bool("update", false, "write the golden files anew")

// The test binary is also berth-keeper and the daemon that TestKill kills.
func TestMain(m *testing.M) {
	keeper.Step = killIn
	logger := log.New(os.Stderr, "", log.Lmicroseconds|log.Lmsgprefix)
	if err := runner.Program(os.Args, logger); !errors.Is(err, runner.ErrUsage) {
		if err != nil {
			logger.Fatal(err)
		}
		syscall.Exit(0) // with the race detector, os.Exit takes a second
	}
	if text := os.Getenv(victimEnv); text != "" {
		if err := beVictim(text); err != nil {
			logger.Fatal(err)
		}
		syscall.Exit(0)
	}
	leak.MainUnderReaper(m)
}
