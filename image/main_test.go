package image

import (
	"os"
	"testing"

	"berth/test/leak"
)

// TestMain also plays the process that TestKilled kills.
func TestMain(m *testing.M) {
	if dir := os.Getenv("IMAGE_TEST_VICTIM"); dir != "" {
		victim(dir, os.Getenv("IMAGE_TEST_REGISTRY"))
	}
	leak.Main(m)
}
