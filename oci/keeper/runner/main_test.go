package runner

import (
	"os"
	"testing"

	"berth/test/leak"
)

func TestMain(m *testing.M) {
	if os.Getenv(reader) != "" {
		readMany()
		os.Exit(0)
	}
	leak.MainUnderReaper(m)
}
