package cni

import (
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Status tells an operator what to do.
func TestStatus(t *testing.T) {
	const broken = `{"cniVersion":"1.0.0","name":"site","plugins":[`
	ok := playList("1.0.0", "", nil)
	tests := map[string]struct {
		files   map[string]string
		builtin bool
		bin     string // only plugin directory
		want    []string
	}{
		"no configuration":         {want: []string{"no network configuration in ", "/net.d", "install the cluster's network plugin", "network.builtin = true"}},
		"built-in":                 {builtin: true},
		"built-in without plugins": {builtin: true, bin: "/nonexistent", want: []string{`network "berth-builtin" (built-in)`, `plugin "bridge" not found in /nonexistent`}},
		"configured":               {files: map[string]string{"10-site.conflist": ok}},
		"invalid":                  {files: map[string]string{"10-site.conflist": broken, "note.txt": ok}, builtin: true, want: []string{"/net.d/10-site.conflist: "}},
		"two invalid":              {files: map[string]string{"10-a.conf": `{}`, "20-b.json": broken}, want: []string{"10-a.conf: ", "20-b.json: "}},
		"invalid and valid":        {files: map[string]string{"10-a.conflist": broken, "20-b.conflist": ok}},
		"missing plugin":           {files: map[string]string{"10-site.conf": `{"cniVersion":"1.0.0","name":"site","type":"absent"}`}, want: []string{`"site"`, "10-site.conf", `plugin "absent" not found in `}},
		"missing IPAM plugin":      {files: map[string]string{"10-site.conf": `{"cniVersion":"1.0.0","name":"site","type":"play","ipam":{"type":"absent"}}`}, want: []string{`plugin "absent" not found in `}},
		"not executable":           {files: map[string]string{"10-site.conf": `{"cniVersion":"1.0.0","name":"site","type":"passwd"}`}, bin: "/etc", want: []string{`plugin "passwd" not found in /etc`}},
		"plugin not ready":         {files: map[string]string{"10-site.conflist": playList("1.1.0", "", map[string]string{"STATUS": "fail"})}, want: []string{`network "site"`, "10-site.conflist", "plugin play: STATUS: no route to the switch"}},
		"old plugin is not asked":  {files: map[string]string{"10-site.conflist": playList("1.0.0", "", map[string]string{"STATUS": "fail"})}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			n := newNetwork(t)
			n.Builtin.Store(test.builtin)
			if test.bin != "" {
				n.BinDirs = []string{test.bin}
			}
			for name, content := range test.files {
				writeConf(t, n, name, content)
			}
			err := n.Status(t.Context())
			if len(test.want) == 0 && err != nil {
				t.Errorf("not ready: %v", err)
			}
			for _, want := range test.want {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("status %v, want %q in it", err, want)
				}
			}
		})
	}
}

// Plugins are asked once for many questions, and again for another configuration.
func TestStatusIsCached(t *testing.T) {
	n := newNetwork(t)
	log := filepath.Join(t.TempDir(), "log")
	writeConf(t, n, "10-site.conflist", playList("1.1.0", log, map[string]string{"STATUS": "fail"}))
	for range 3 {
		if err := n.Status(t.Context()); err == nil {
			t.Error("ready")
		}
	}
	wantLog(t, log, "STATUS")
	writeConf(t, n, "10-site.conflist", playList("1.1.0", log, nil))
	noError(t, n.Status(t.Context()))
	noError(t, n.Status(t.Context()))
	wantLog(t, log, "STATUS", "STATUS")

	n.status.at = n.status.at.Add(-statusAge)
	noError(t, n.Status(t.Context()))
	wantLog(t, log, "STATUS", "STATUS", "STATUS")
}

// A plugin that does not answer is not ready; a caller that does not wait has
// learnt nothing.
func TestStatusOfHangingPlugin(t *testing.T) {
	n := newNetwork(t)
	n.Timeout = time.Second
	log := filepath.Join(t.TempDir(), "log")
	writeConf(t, n, "10-site.conflist", playList("1.1.0", log, map[string]string{"STATUS": "hang"}))
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := n.Status(ctx); err == nil {
		t.Error("ready")
	}
	for range 2 {
		if err := n.Status(t.Context()); err == nil || !strings.Contains(err.Error(), "no end after 1s") {
			t.Errorf("status: %v", err)
		}
	}
	if len(runningPlugins(t)) > 0 {
		t.Error("a plugin still runs")
	}
}
