package cri

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	"berth/test/expect"
)

func TestUnknownIDs(t *testing.T) {
	n := newNode(t)
	for name, err := range expect.Calls(t.Context(), n, strings.Repeat("0", 64), containerConfig("c", "busybox")) {
		if strings.HasPrefix(name, "Stop") || strings.HasPrefix(name, "Remove") {
			expect.Code(t, name, err, codes.OK)
		} else {
			expect.Code(t, name, err, codes.NotFound)
		}
	}
}
