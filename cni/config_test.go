package cni

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
)

func TestReadNetwork(t *testing.T) {
	const list = `{"cniVersion":"1.1.0","name":"site","plugins":[{"type":"a","ipam":{"type":"b"}},{"type":"c","mtu":9007199254740993}]}`
	tests := map[string]struct {
		file, content string
		plugins       string // names, or
		err           string
	}{
		"list":            {"x.conflist", list, "a b c", ""},
		"plugin":          {"x.conf", `{"cniVersion":"0.3.1","name":"site","type":"a"}`, "a", ""},
		"plugin in json":  {"x.json", `{"name":"site","type":"a"}`, "a", ""},
		"several files":   {"x.conflist", `{"cniVersion":"1.1.0","name":"split"}`, "one two", ""},
		"list in conf":    {"x.conf", list, "", "type"},
		"empty":           {"x.conflist", ``, "", "JSON"},
		"no plugins":      {"x.conflist", `{"cniVersion":"1.0.0","name":"site","plugins":[]}`, "", "plugins"},
		"no name":         {"x.conflist", `{"cniVersion":"1.0.0","plugins":[{"type":"a"}]}`, "", "name"},
		"no name in conf": {"x.conf", `{"cniVersion":"1.0.0","type":"a"}`, "", "name"},
		"name is a path":  {"x.conflist", `{"cniVersion":"1.0.0","name":"../x","plugins":[{"type":"a"}]}`, "", "name"},
		"our name":        {"x.conflist", `{"cniVersion":"1.0.0","name":"berth-builtin","plugins":[{"type":"a"}]}`, "", "built-in"},
		"future version":  {"x.conflist", `{"cniVersion":"9.0.0","name":"site","plugins":[{"type":"a"}]}`, "", `"9.0.0"`},
		"no version":      {"x.conflist", `{"cniVersion":"one","name":"site","plugins":[{"type":"a"}]}`, "", `"one"`},
		"type is a path":  {"x.conflist", `{"cniVersion":"1.0.0","name":"site","plugins":[{"type":"a"},{"type":"../../bin/sh"}]}`, "", "plain name"},
		"type goes up":    {"x.conflist", `{"cniVersion":"1.0.0","name":"site","plugins":[{"type":".."}]}`, "", "plain name"},
		"IPAM is a path":  {"x.conf", `{"cniVersion":"1.0.0","name":"site","type":"a","ipam":{"type":"/bin/sh"}}`, "", "plain name"},
	}
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "split"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{"1.conf": `{"type":"one"}`, "2.conf": `{"type":"two"}`} {
		if err := os.WriteFile(filepath.Join(dir, "split", name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(dir, test.file)
			if err := os.WriteFile(file, []byte(test.content), 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := readNetwork(file)
			if test.err != "" {
				if err == nil || !strings.Contains(err.Error(), test.err) {
					t.Errorf("error %v, want %q in it", err, test.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if names := strings.Join(pluginNames(got), " "); names != test.plugins {
				t.Errorf("plugins %q, want %q", names, test.plugins)
			}
			alone, err := libcni.NetworkConfFromBytes(got.Bytes)
			if err != nil || strings.Join(pluginNames(alone), " ") != test.plugins {
				t.Errorf("its bytes alone: %v, %v", alone, err)
			}
		})
	}
}

// The first valid file by name counts, whatever its ending.
func TestOperatorNetwork(t *testing.T) {
	n := &Network{ConfDir: t.TempDir()}
	write := func(name, content string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(n.ConfDir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want := func(name string) {
		t.Helper()
		got, err := n.operatorNetwork()
		if err != nil {
			t.Fatal(err)
		}
		if filepath.Base(got.source) != name {
			t.Errorf("chose %s, want %s", got.source, name)
		}
	}
	if err := os.Mkdir(filepath.Join(n.ConfDir, "00-dir.conf"), 0o755); err != nil {
		t.Fatal(err)
	}
	write("30-c.conflist", `{"cniVersion":"1.0.0","name":"c","plugins":[{"type":"a"}]}`)
	want("30-c.conflist")
	write("20-b.json", `{"cniVersion":"1.0.0","name":"b","type":"a"}`)
	want("20-b.json")
	write("10-a.conf", `{"cniVersion":"1.0.0","name":"a","type":"../a"}`)
	want("20-b.json")
	write("05-x.conflist.bak", `{"cniVersion":"1.0.0","name":"x","plugins":[{"type":"a"}]}`)
	want("20-b.json")
	write("10-a.conf", `{"cniVersion":"1.0.0","name":"a","type":"a"}`)
	want("10-a.conf")

	n.ConfDir = filepath.Join(n.ConfDir, "20-b.json") // no directory
	if _, err := n.operatorNetwork(); err == nil {
		t.Error("no error for a directory that cannot be read")
	}
}
