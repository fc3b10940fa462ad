package cni

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// again is the Network of the next berthd.
func again(n *Network) *Network {
	return &Network{ConfDir: n.ConfDir, BinDirs: n.BinDirs, CacheDir: n.CacheDir, Timeout: n.Timeout}
}

func TestGC(t *testing.T) {
	n := newNetwork(t)
	kept, left, gone := newPod(t, "kept"), newPod(t, "left"), newPod(t, "gone")
	for _, pod := range []Pod{kept, left, gone} {
		add(t, n, pod)
	}
	serve(t, kept)
	unpin(t, gone.NetNS)

	next := again(n)
	noError(t, next.GC(t.Context(), map[string]bool{"kept": true, "unknown": true}))
	ids, err := next.attached()
	if err != nil || len(ids) != 1 || ids[0] != "kept" {
		t.Errorf("attached: %v, %v", ids, err)
	}
	noError(t, next.GC(t.Context(), nil))
}

// A GC whose keep is older than an attachment leaves it alone, once.
func TestGCSparesNewAttachments(t *testing.T) {
	n := newNetwork(t)
	pod := newPod(t, "a")
	noError(t, n.GC(t.Context(), nil))
	add(t, n, pod)
	noError(t, n.GC(t.Context(), nil))
	if rec, err := n.load(pod.ID); rec == nil || err != nil {
		t.Errorf("collected at once: %v, %v", rec, err)
	}
	noError(t, n.GC(t.Context(), map[string]bool{pod.ID: true}))
	noError(t, n.GC(t.Context(), nil))
	checkEmpty(t, n)
}

// A GC that waits for a pod's Add to end leaves what it attached alone.
func TestGCSparesAddInProgress(t *testing.T) {
	n := newNetwork(t)
	pod := newPod(t, "a")
	add(t, n, pod)

	next := again(n)
	unlock, err := next.pods.lock(t.Context(), pod.ID)
	if err != nil {
		t.Fatal(err)
	}
	collected := make(chan error)
	go func() { collected <- next.GC(t.Context(), nil) }()
	for waiting := false; !waiting; runtime.Gosched() {
		next.pods.mu.Lock()
		waiting = next.pods.locks[pod.ID].users == 2
		next.pods.mu.Unlock()
	}
	next.setOwn(pod.ID) // as an Add does
	unlock()
	noError(t, <-collected)
	if rec, err := n.load(pod.ID); rec == nil || err != nil {
		t.Errorf("collected: %v, %v", rec, err)
	}
	del(t, n, pod)
}

// One attachment that cannot be detached keeps no other from being so.
func TestGCGoesOn(t *testing.T) {
	n := newNetwork(t)
	writeConf(t, n, "10-site.conflist", playList("1.0.0", "", map[string]string{"DEL": "fail"}))
	stuck := newPod(t, "astuck")
	add(t, n, stuck)
	noError(t, os.RemoveAll(n.ConfDir))
	add(t, n, newPod(t, "b"))

	next := again(n)
	err := next.GC(t.Context(), nil)
	if err == nil || !strings.Contains(err.Error(), "astuck") || !strings.Contains(err.Error(), "no route to the switch") {
		t.Errorf("GC: %v", err)
	}
	ids, err := next.attached()
	if err != nil || len(ids) != 1 || ids[0] != "astuck" {
		t.Errorf("attached: %v, %v", ids, err)
	}
	mend(t, next, stuck)
}

// mend lets the DEL of a pod's plugin succeed.
func mend(t *testing.T, n *Network, pod Pod) {
	t.Helper()
	data, err := os.ReadFile(n.recordPath(pod.ID))
	noError(t, err)
	noError(t, os.WriteFile(n.recordPath(pod.ID), []byte(strings.ReplaceAll(string(data), `"DEL":"fail"`, `"DEL":""`)), 0o600))
	del(t, n, pod)
}

// Plugins of spec 1.1 are told what is valid; older ones and those that do not
// want it are not asked.
func TestPluginGC(t *testing.T) {
	tests := map[string]struct {
		version, option string
		want            []string
	}{
		"1.1":          {"1.1.0", "", []string{"ADD a", "ADD b", "DEL b", "GC", `valid [{"containerID":"a","ifname":"eth0"}]`, "DEL a"}},
		"1.0":          {"1.0.0", "", []string{"ADD a", "ADD b", "DEL b", "DEL a"}},
		"switched off": {"1.1.0", `"disableGC":true,`, []string{"ADD a", "ADD b", "DEL b", "DEL a"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			n := newNetwork(t)
			log := filepath.Join(t.TempDir(), "log")
			writeConf(t, n, "10-site.conflist", fmt.Sprintf(`{"cniVersion":%q,"name":"site",%s"plugins":[%s]}`, test.version, test.option, playPart(log, nil)))
			a, b := newPod(t, "a"), newPod(t, "b")
			add(t, n, a)
			add(t, n, b)
			next := again(n)
			noError(t, next.GC(t.Context(), map[string]bool{"a": true}))
			del(t, next, a)
			wantLog(t, log, test.want...)
		})
	}
}

// While a pod is added, the plugins' GC is left for the next time.
func TestPluginGCLetsAddsPass(t *testing.T) {
	n := newNetwork(t)
	log := filepath.Join(t.TempDir(), "log")
	writeConf(t, n, "10-site.conflist", playList("1.1.0", log, nil))
	n.adding.RLock()
	noError(t, n.GC(t.Context(), nil))
	n.adding.RUnlock()
	wantLog(t, log)
	noError(t, n.GC(t.Context(), nil))
	wantLog(t, log, "GC", "valid []")
}

// The reference plugins' own GC.
func TestReferenceGC(t *testing.T) {
	n := newNetwork(t)
	pod := newPod(t, "a")
	writeConf(t, n, "10-site.conflist", strings.Replace(chain(n), "1.0.0", "1.1.0", 1))
	add(t, n, pod)
	noError(t, n.GC(t.Context(), map[string]bool{"a": true}))
	noError(t, n.Status(t.Context()))
	del(t, n, pod)
	removeLink(t, "berthtest0")
}
