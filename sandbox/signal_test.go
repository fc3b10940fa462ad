package sandbox

import (
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestEverySignalHasItsNumber(t *testing.T) {
	for value, name := range runtimeapi.Signal_name {
		s := runtimeapi.Signal(value)
		n := number(s)
		if s == runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT {
			if n != 0 {
				t.Errorf("%s: %d", name, n)
			}
			continue
		}
		if n <= 0 || n > realtimeMax {
			t.Errorf("%s: %d", name, n)
		}
		if back, ok := numbered(int(n)); !ok || number(back) != n {
			t.Errorf("%s: %d is shown as %s", name, n, back)
		}
	}
	if number(runtimeapi.Signal(1000)) != 0 {
		t.Error("an unknown signal has a number")
	}
}

func TestParseSignal(t *testing.T) {
	for text, want := range map[string]int{
		"SIGTERM": 15, "TERM": 15, "term": 15, "15": 15, "SIGQUIT": 3, "9": 9,
		"SIGRTMIN": 34, "SIGRTMIN+3": 37, "RTMIN+15": 49, "RTMIN+16": 50, "RTMAX": 64, "SIGRTMAX-14": 50, "RTMAX-30": 34, "37": 37,
		"": 0, "SIG": 0, "SIGNOPE": 0, "0": 0, "-1": 0, "65": 0, "32": 0, "RTMIN-1": 0, "RTMAX+1": 0, "RTMINX": 0,
	} {
		s, ok := parseSignal(text)
		if got := int(number(s)); got != want || ok != (want != 0) {
			t.Errorf("%q: %d %v, want %d", text, got, ok, want)
		}
	}
}
