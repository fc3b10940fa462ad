package cni

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

// berthd is killed before and after each plugin of an ADD and of a DEL, and
// after the whole ADD, while the plugin goes on. Del and GC of the next berthd
// leave nothing, and Add attaches the pod as if nothing had been.
func TestKilledAtEachStep(t *testing.T) {
	scenes := []scene{{}} // killed after Add
	for _, plugin := range []string{"bridge", "host-local", "portmap"} {
		for _, command := range []string{"ADD", "DEL"} {
			scenes = append(scenes, scene{Plugin: plugin, Command: command}, scene{Plugin: plugin, Command: command, After: true})
		}
	}
	for _, s := range scenes {
		when := "before"
		if s.After {
			when = "after"
		}
		t.Run(fmt.Sprintf("%s %s %s", when, s.Plugin, s.Command), func(t *testing.T) {
			n := newNetwork(t)
			pod := newPod(t, "a", PortMapping{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"})
			serve(t, pod)

			s.kill(t, n, pod)
			add(t, n, pod)
			noError(t, ask("tcp", "127.0.0.1:8080"))
			del(t, n, pod)

			s.kill(t, n, pod)
			del(t, n, pod)
			checkEmpty(t, n)

			s.kill(t, n, pod)
			next := &Network{ConfDir: n.ConfDir, BinDirs: n.BinDirs, CacheDir: n.CacheDir, Timeout: n.Timeout}
			noError(t, next.GC(t.Context(), nil))
		})
	}
}

// kill runs the scene: a berthd that dies in it.
func (s scene) kill(t *testing.T, n *Network, pod Pod) {
	t.Helper()
	wrapped := t.TempDir()
	for _, name := range []string{"bridge", "host-local", "portmap"} {
		linkSelf(t, filepath.Join(wrapped, name))
	}
	s.Real = referencePlugins(t)
	s.Pod = pod
	s.Network.BinDirs = []string{wrapped}
	s.Network.CacheDir = n.CacheDir
	data, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(wrapped, sceneFile), data, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), victimEnv+"="+string(data))
	out, err := os.CreateTemp(t.TempDir(), "out")
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Run()
	if status := cmd.ProcessState.Sys().(syscall.WaitStatus); !status.Signaled() {
		said, _ := os.ReadFile(out.Name())
		t.Fatalf("not killed: %v: %s", cmd.ProcessState, said)
	}
}

// A plugin that hangs as an orphan is killed before the pod is detached.
func TestHangingOrphan(t *testing.T) {
	n := newNetwork(t)
	pod := newPod(t, "a")
	orphan := exec.Command(filepath.Join(n.BinDirs[0], "play"), "hang")
	orphan.Env = []string{"CNI_COMMAND=ADD", "CNI_CONTAINERID=a", "CNI_IFNAME=eth0"}
	noError(t, orphan.Start())
	other := exec.Command(filepath.Join(n.BinDirs[0], "play"), "hang")
	other.Env = []string{"CNI_COMMAND=ADD", "CNI_CONTAINERID=b", "CNI_IFNAME=eth0"}
	noError(t, other.Start())

	scene{}.kill(t, n, pod)
	del(t, n, pod)
	for id, want := range map[string]int{"a": 0, "b": 1} {
		if left, err := findOrphans(id); len(left) != want || err != nil {
			t.Errorf("plugins of pod %s: %v, %v, want %d", id, left, err, want)
		}
	}
	for _, plugin := range []*exec.Cmd{orphan, other} {
		plugin.Process.Kill()
		plugin.Wait()
	}
}

// Files that a power cut left empty or half written hinder nobody.
func TestTornFiles(t *testing.T) {
	n := newNetwork(t)
	ports := PortMapping{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"}
	results := func(id string) string {
		return filepath.Join(n.CacheDir, "results", builtinName+"-"+id+"-"+IfName)
	}
	tests := map[string]func(id string){
		"record":      func(id string) { noError(t, os.WriteFile(n.recordPath(id), []byte(`{"ID":`), 0o600)) },
		"result":      func(id string) { noError(t, os.Truncate(results(id), 0)) },
		"half result": func(id string) { noError(t, os.Truncate(results(id), 40)) },
		"no result":   func(id string) { noError(t, os.Remove(results(id))) },
		"new record":  func(id string) { noError(t, os.WriteFile(n.recordPath(id)+partial, []byte(`{`), 0o600)) },
	}
	for name, tear := range tests {
		t.Run(name, func(t *testing.T) {
			before := hostState(t)
			pod := newPod(t, "a", ports)
			add(t, n, pod)
			tear(pod.ID)
			del(t, n, Pod{ID: pod.ID})
			checkEmpty(t, n)
			wantHostState(t, before)
		})
	}
	t.Run("only a new record", func(t *testing.T) {
		noError(t, os.WriteFile(n.recordPath("a")+partial, []byte(`{`), 0o600))
		noError(t, n.GC(t.Context(), nil))
	})
}
