//go:build node

package node

import (
	"testing"

	"berth/test/leak"
)

func TestMain(m *testing.M) { leak.MainUnderReaper(m) }
