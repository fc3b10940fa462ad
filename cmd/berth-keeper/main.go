// Command berth-keeper is the keeper and the runner of Berth, and the init of
// shared pid namespaces. berthd starts it; it takes the run directory.
package main

import (
	"log"
	"os"

	"berth/oci/keeper/runner"
)

func main() {
	logger := log.New(runner.Log(os.Stderr), "", log.LstdFlags|log.Lmicroseconds|log.LUTC|log.Lmsgprefix)
	if err := runner.Program(os.Args, logger); err != nil {
		logger.Fatal(err)
	}
}
