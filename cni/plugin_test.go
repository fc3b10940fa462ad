package cni

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"berth/test/leak"
)

// chain is a network of the reference plugins bridge and host-local and of the
// parts, which come after them.
func chain(n *Network, parts ...string) string {
	bridge := fmt.Sprintf(`{"type":"bridge","bridge":"berthtest0","ipam":{"type":"host-local","dataDir":%q,"ranges":[[{"subnet":"10.232.0.0/24"}]]}}`,
		filepath.Join(n.CacheDir, "test-ipam"))
	return fmt.Sprintf(`{"cniVersion":"1.0.0","name":"site","plugins":[%s]}`, strings.Join(append([]string{bridge}, parts...), ","))
}

// What goes wrong in the second plugin of a chain: the error says who and why,
// and the first plugin's work is undone.
func TestFailingPlugins(t *testing.T) {
	tests := map[string]struct {
		on      map[string]string
		timeout time.Duration
		want    []string // in the error
		is      error
		kept    bool // the attachment, because DEL fails as well
	}{
		"reports an error": {
			on:   map[string]string{"ADD": "fail"},
			want: []string{"plugin play: ADD:", "no route to the switch", "port 7", "code 100", "looked for the switch", `network "site"`, "10-site.conflist"},
		},
		"reports an error twice": {
			on:   map[string]string{"ADD": "fail", "DEL": "fail"},
			want: []string{"plugin play: ADD:", "undo: plugin play: DEL:"},
			kept: true,
		},
		"crashes": {
			on:   map[string]string{"ADD": "crash"},
			want: []string{"exit status 2", "out of cheese"},
		},
		"hangs twice": {
			on:      map[string]string{"ADD": "hang", "DEL": "hang"},
			timeout: 2 * time.Second,
			want:    []string{"no end after 2s", "undo: plugin play: DEL"},
			kept:    true,
		},
		"hangs with a child that holds its output": {
			on:      map[string]string{"ADD": "fork and hang"},
			timeout: 2 * time.Second,
			want:    []string{"no end after 2s", "waiting for the switch"},
			is:      context.DeadlineExceeded,
		},
		"prints without end": {
			on:   map[string]string{"ADD": "flood"},
			want: []string{"plugin play", "printed more than"},
		},
		"prints no result": {
			on:   map[string]string{"ADD": "garbage"},
			want: []string{`"play"`, "failed"},
		},
		"gives no address": {
			on:   map[string]string{"ADD": "no address"},
			want: []string{"no address for the pod"},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			n := newNetwork(t)
			if test.timeout != 0 {
				n.Timeout = test.timeout
			}
			writeConf(t, n, "10-site.conflist", chain(n, playPart("", test.on)))
			pod := newPod(t, "a")
			_, err := n.Add(t.Context(), pod)
			if err == nil {
				t.Fatal("no error")
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q has no %q", err, want)
				}
			}
			if test.is != nil && !errors.Is(err, test.is) {
				t.Errorf("error %v is not %v", err, test.is)
			}
			if len(err.Error()) > 4*maxStderr {
				t.Errorf("error of %d bytes", len(err.Error()))
			}
			if _, err := os.Stat(n.recordPath(pod.ID)); (err == nil) != test.kept {
				t.Errorf("record: %v, want kept %v", err, test.kept)
			}
			if left := runningPlugins(t); len(left) > 0 {
				t.Errorf("processes left: %q", left)
			}
			checkBridgeChain(t, n, pod)
			if test.kept {
				noError(t, os.WriteFile(n.recordPath(pod.ID), []byte("{"), 0o600)) // nobody could detach it
				del(t, n, pod)
			}
		})
	}
}

// checkBridgeChain looks whether the bridge plugin holds anything for the pod.
func checkBridgeChain(t *testing.T, n *Network, pod Pod) {
	t.Helper()
	addresses, err := filepath.Glob(filepath.Join(n.CacheDir, "test-ipam", "site", "10.*"))
	if err != nil || len(addresses) > 0 {
		t.Errorf("addresses left: %v, %v", addresses, err)
	}
	inPod(t, pod, func() error {
		if _, err := os.Stat("/proc/sys/net/ipv4/conf/" + IfName); err == nil {
			t.Errorf("%s left in the pod", IfName)
		}
		return nil
	})
	removeLink(t, "berthtest0")
}

func TestCancelledAdd(t *testing.T) {
	n := newNetwork(t)
	writeConf(t, n, "10-site.conflist", chain(n, playPart("", map[string]string{"ADD": "hang"})))
	pod := newPod(t, "a")
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := n.Add(ctx, pod); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Add: %v", err)
	}
	checkBridgeChain(t, n, pod)
}

func TestMissingPlugin(t *testing.T) {
	n := newNetwork(t)
	log := filepath.Join(t.TempDir(), "log")
	writeConf(t, n, "10-site.conflist", fmt.Sprintf(`{"cniVersion":"1.0.0","name":"site","plugins":[%s,{"type":"absent"}]}`, playPart(log, nil)))
	_, err := n.Add(t.Context(), newPod(t, "a"))
	if err == nil || !strings.Contains(err.Error(), `plugin "absent" not found in `+strings.Join(n.BinDirs, ", ")) {
		t.Errorf("Add: %v", err)
	}
	wantLog(t, log)
}

// A plugin's children in its process group end with it, also when it succeeds.
func TestPluginLeavesChild(t *testing.T) {
	n := newNetwork(t)
	writeConf(t, n, "10-site.conflist", playList("1.0.0", "", map[string]string{"ADD": "fork"}))
	pod := newPod(t, "a")
	add(t, n, pod)
	if left := runningPlugins(t); len(left) > 0 {
		t.Errorf("processes left: %q", left)
	}
	del(t, n, pod)
}

// A daemon that a plugin starts on purpose lives on, and does not keep Add from
// returning though it holds the plugin's output.
func TestPluginStartsDaemon(t *testing.T) {
	n := newNetwork(t)
	log := filepath.Join(t.TempDir(), "log")
	writeConf(t, n, "10-site.conflist", playList("1.0.0", log, map[string]string{"ADD": "fork a session"}))
	pod := newPod(t, "a")
	add(t, n, pod)
	data, err := os.ReadFile(log)
	noError(t, err)
	var id string
	var daemon int
	if _, err := fmt.Sscanf(string(data), "ADD %s\nforked %d", &id, &daemon); err != nil {
		t.Fatalf("log %q: %v", data, err)
	}
	if left := runningPlugins(t); len(left) != 1 {
		t.Errorf("processes: %q, want the daemon", left)
	}
	ctx, cancel := n.withTimeout(t.Context(), n.Timeout)
	defer cancel()
	noError(t, killOrphan(ctx, daemon, id))
	del(t, n, pod)
}

func TestStderrFlood(t *testing.T) {
	e := ending{max: 10}
	for _, s := range []string{"0123456789abcdef", "", "gh", "ij"} {
		if n, err := e.Write([]byte(s)); n != len(s) || err != nil {
			t.Errorf("Write: %d, %v", n, err)
		}
	}
	if got := string(e.data); got != "abcdefghij" {
		t.Errorf("kept %q", got)
	}
}

func TestTooMuchOutput(t *testing.T) {
	cat := leak.NeedTool(t, "cat")
	out, _, err := run(t.Context(), cat, nil, make([]byte, maxStdout+1))
	if err == nil || len(out) != maxStdout {
		t.Errorf("%d bytes, error %v", len(out), err)
	}
	if out, _, err := run(t.Context(), cat, nil, make([]byte, maxStdout)); err != nil || len(out) != maxStdout {
		t.Errorf("at the limit: %d bytes, error %v", len(out), err)
	}
}

// Plugins get what the spec names, and nothing of berthd's environment.
func TestPluginEnvironment(t *testing.T) {
	n := newNetwork(t)
	t.Setenv("REGISTRY_PASSWORD", "secret")
	t.Setenv("CNI_NETNS_OVERRIDE", "1")
	t.Setenv("LD_PRELOAD", "/nonexistent.so")
	log := filepath.Join(t.TempDir(), "log")
	writeConf(t, n, "10-site.conflist", playList("1.0.0", log, map[string]string{"ADD": "environment"}))
	pod := newPod(t, "a")
	add(t, n, pod)
	data, err := os.ReadFile(log)
	noError(t, err)
	got := map[string]string{}
	for _, line := range strings.Split(strings.TrimSpace(string(data)), "\n")[1:] {
		name, value, _ := strings.Cut(line, "=")
		got[name] = value
	}
	want := map[string]string{
		"PATH":            searchPath,
		"CNI_COMMAND":     "ADD",
		"CNI_CONTAINERID": "a",
		"CNI_NETNS":       pod.NetNS,
		"CNI_IFNAME":      "eth0",
		"CNI_PATH":        strings.Join(n.BinDirs, ":"),
		"CNI_ARGS":        "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=pod-a;K8S_POD_INFRA_CONTAINER_ID=a;K8S_POD_UID=uid-a",
	}
	for name, value := range want {
		if got[name] != value {
			t.Errorf("%s=%q, want %q", name, got[name], value)
		}
	}
	if len(got) != len(want) {
		t.Errorf("environment %v, want %v", got, want)
	}
	del(t, n, pod)
}
