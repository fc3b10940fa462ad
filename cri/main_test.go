package cri

import (
	"testing"

	"berth/test/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }
