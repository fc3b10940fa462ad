package runner

import (
	"os"
	"testing"

	"berth/test/leak"
)

func TestMain(m *testing.M) {
	if os.Getenv(readerEnv) != "" {
		readMany()
		os.Exit(0)
	}
	if os.Getenv(loops) != "" {
		os.Exit(m.Run()) // its parent looks for what is left
	}
	leak.MainUnderReaper(m)
}
