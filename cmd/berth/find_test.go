package main

import (
	"errors"
	"strings"
	"testing"
)

func TestFind(t *testing.T) {
	var all []entry
	for _, l := range node() {
		all = append(all, l.entry)
	}
	for _, test := range []struct {
		ref  string
		want string // name of the entry found; or a part of the error after "!"
	}{
		{"web", "web"},
		{"e5e5e5", "web"}, // beginning of the container's id
		{"a1a1a1", "web"}, // of the pod's
		{hexID("e5"), "web"},
		{"half", "half"},
		{"c3", "half"},
		{"coredns", "kube-system/coredns-1/coredns"},
		{"kube-system/coredns-1/sidecar", "kube-system/coredns-1/sidecar"},
		{"coredns-1", "!not clear"}, // a pod with two containers
		{"d4", "!not clear"},
		{"1", "kube-system/coredns-1/sidecar"},
		{"nothing", "!no container"},
		{"we", "!no container"}, // names are whole
	} {
		e, err := find(all, test.ref)
		part, fails := strings.CutPrefix(test.want, "!")
		switch {
		case fails && (err == nil || !strings.Contains(err.Error(), part)):
			t.Errorf("find(%q): %v, want an error with %q", test.ref, err, part)
		case !fails && (err != nil || e.name() != test.want):
			t.Errorf("find(%q) = %q, %v; want %q", test.ref, e.name(), err, test.want)
		}
	}
	if _, err := find(all, ""); !errors.As(err, &usageError{}) {
		t.Errorf("an empty name: %v", err)
	}
}

// A whole name counts even where it is the beginning of another's id.
func TestNameComesBeforeID(t *testing.T) {
	var all []entry
	for _, l := range node() {
		all = append(all, l.entry)
	}
	all[0].pod.Metadata.Name, all[0].container.Metadata.Name = "f6f6", "f6f6"
	if e, err := find(all, "f6f6"); err != nil || e.name() != "f6f6" {
		t.Errorf("found %q, %v", e.name(), err)
	}
}

// Only the logs of pods that run made are ours to remove, and nothing outside
// their directory, whatever the pod is called.
func TestLogDir(t *testing.T) {
	lines := node()
	if dir := lines[0].logDir(); dir != "/var/log/berth/pods/web" {
		t.Errorf("log directory of a pod made by hand: %q", dir)
	}
	if dir := lines[3].logDir(); dir != "" {
		t.Errorf("log directory of a kubelet's pod: %q", dir)
	}
	for _, name := range []string{"..", "../../etc", "a/b", ""} {
		lines[0].pod.Metadata.Name = name
		if dir := lines[0].logDir(); dir != "" {
			t.Errorf("log directory of a pod named %q: %q", name, dir)
		}
	}
}
