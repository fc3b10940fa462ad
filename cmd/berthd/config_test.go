package main

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"berth/cri/admin"
	"berth/test/expect"
	"berth/test/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

func defaults(t *testing.T) config {
	t.Helper()
	c, err := parse("none.toml", nil)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestDefaults(t *testing.T) {
	want := config{
		Socket:     admin.DefaultSocket,
		RunDir:     "/run/berth",
		DataDir:    "/var/lib/berth",
		LibexecDir: "/usr/local/libexec/berth",
		Runtime: runtimeConfig{
			Default:  "runc",
			Timeout:  duration(2 * time.Minute),
			Handlers: map[string]handlerConfig{"runc": {}, "crun": {}},
		},
		Network: networkConfig{
			ConfDir: "/etc/cni/net.d",
			BinDirs: []string{"/usr/local/libexec/berth/cni", "/opt/cni/bin", "/usr/lib/cni"},
			Timeout: duration(90 * time.Second),

			UnprivilegedPorts: true, UnprivilegedPing: true,
		},
		Image:     imageConfig{PlainHTTP: []string{}, PullTimeout: duration(time.Minute), PullMinRate: 10 << 10, ZstdWindow: 32 << 20},
		Container: containerConfig{Nofile: 1 << 20},
		Streaming: streamingConfig{Address: "127.0.0.1:0"},
	}
	if got := defaults(t); !reflect.DeepEqual(got, want) {
		t.Errorf("defaults are\n%+v, want\n%+v", got, want)
	}
	// The file that an operator begins with changes nothing.
	if got, err := parse("berthd.toml", defaultTOML); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("`berthd config default` reads as\n%+v, %v", got, err)
	}
}

// Every key that the daemon knows stands in the default file under a comment.
func TestEveryKeyIsDocumented(t *testing.T) {
	text := strings.Split(string(defaultTOML), "\n")
	lines := keyLines(defaultTOML)
	for _, key := range keysOf(reflect.TypeFor[config](), "") {
		line := lines[key]
		if line == 0 {
			t.Errorf("%s is missing in berthd.toml", key)
			continue
		}
		if above := text[line-2]; !strings.HasPrefix(above, "# ") {
			t.Errorf("berthd.toml:%d: %s has no comment above it", line, key)
		}
	}
}

// keysOf lists the keys of a struct; a map stands for its entry "runc".
func keysOf(of reflect.Type, prefix string) []string {
	var keys []string
	for field := range of.Fields() {
		key := prefix + field.Tag.Get("toml")
		switch field.Type.Kind() {
		case reflect.Struct:
			keys = append(keys, keysOf(field.Type, key+".")...)
		case reflect.Map:
			keys = append(keys, keysOf(field.Type.Elem(), key+".runc.")...)
		default:
			keys = append(keys, key)
		}
	}
	return keys
}

func TestFileChangesOnlyWhatItNames(t *testing.T) {
	got, err := parse("a.toml", []byte(`
run_dir = "/run/other"
[runtime]
default = "crun"
[runtime.handlers.crun]
path = "/opt/crun"
[runtime.handlers.fast]
path = "/opt/fast"
[network]
bin_dirs = ["/opt/cni/bin"]
[image]
plain_http = ["registry.local", "10.0.0.1:5000", "[::1]:5000"]
pull_timeout = "1h"
pull_min_rate = 1
zstd_window = 8388608
`))
	if err != nil {
		t.Fatal(err)
	}
	want := defaults(t)
	want.RunDir = "/run/other"
	want.Runtime.Default = "crun"
	want.Runtime.Handlers["crun"] = handlerConfig{Path: "/opt/crun"}
	want.Runtime.Handlers["fast"] = handlerConfig{Path: "/opt/fast"}
	want.Network.BinDirs = []string{"/opt/cni/bin"}
	want.Image.PlainHTTP = []string{"registry.local", "10.0.0.1:5000", "[::1]:5000"}
	want.Image.PullTimeout = duration(time.Hour)
	want.Image.PullMinRate = 1
	want.Image.ZstdWindow = 8 << 20
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%+v, want\n%+v", got, want)
	}
}

func TestWrongFiles(t *testing.T) {
	for _, test := range []struct{ name, text, want string }{
		{"unknown key", "\nsokcet = '/a'", "f.toml:2: unknown key sokcet"},
		{"unknown table", "[runtimes]\na = 1", "f.toml:1: unknown key runtimes"},
		{"unknown key in a table", "[network]\ntimeout = '1m'\nbuiltn = true", "f.toml:3: unknown key network.builtn"},
		{"unknown key of a handler", "[runtime.handlers.x]\npath = '/x'\npth = ''", "f.toml:3: unknown key runtime.handlers.x.pth"},
		{"all of them", "a = 1\nb = 2", "f.toml:1: unknown key a\nf.toml:2: unknown key b"},
		{"no TOML", "run_dir = '/a'\nrun_dir", "f.toml:2: "},
		{"given twice", "run_dir = '/a'\nrun_dir = '/b'", "f.toml:2: "},
		{"wrong type", "[network]\nbuiltin = 'yes'", "f.toml:2: network.builtin: "},
		{"number for a duration", "[network]\ntimeout = 90", "f.toml:2: network.timeout: "},
		{"no duration", "[image]\npull_timeout = '1 minute'", `f.toml:2: image.pull_timeout: toml: "1 minute" is no duration`},
		{"negative duration", "[image]\npull_timeout = '-1s'", "f.toml:2: image.pull_timeout: -1s is not within 1s to 1h0m0s"},
		{"no rate", "[image]\npull_min_rate = 0", "f.toml:2: image.pull_min_rate: 0 is not within 1 to 104857600"},
		{"window of a giant", "[image]\nzstd_window = 268435456", "f.toml:2: image.zstd_window: 268435456 is not within 1048576 to 134217728"},
		{"rate of no network", "[image]\npull_min_rate = 1000000000", "f.toml:2: image.pull_min_rate: 1000000000 is not within"},
		{"endless duration", "[runtime]\n\ntimeout = '2h'", "f.toml:3: runtime.timeout: 2h0m0s is not within"},
		{"negative number", "[container]\nnofile = -1", "f.toml:2: container.nofile: "},
		{"too few files", "[container]\nnofile = 3", "f.toml:2: container.nofile: 3 is not within"},
		{"too many files", "[container]\nnofile = 2000000", "f.toml:2: container.nofile: 2000000 is not within"},
		{"relative path", "data_dir = 'lib'", `f.toml:1: data_dir: "lib" is no absolute, clean path`},
		{"path that climbs", "data_dir = '/var/../etc'", `f.toml:1: data_dir: "/var/../etc"`},
		{"empty path", "socket = ''", `f.toml:1: socket: "" is no absolute, clean path`},
		{"long socket", "socket = '/" + strings.Repeat("a", 107) + "'", "f.toml:1: socket: is longer than 107 bytes"},
		{"no plugin directory", "[network]\nbin_dirs = []", "f.toml:2: network.bin_dirs: is empty"},
		{"relative plugin directory", "[network]\nbin_dirs = [\n'/a',\n'b']", `f.toml:2: network.bin_dirs: "b" is no`},
		{"unknown default", "[runtime]\ndefault = 'kata'", `f.toml:2: runtime.default: "kata" is none of runtime.handlers`},
		{"relative runtime", "[runtime.handlers.x]\npath = 'x'", `f.toml:2: runtime.handlers.x.path: "x" is no absolute`},
		{"in an inline table", "runtime.handlers.x = {\npath = 'x'}", `f.toml:2: runtime.handlers.x.path: "x" is no absolute`},
		{"name of a handler", "[runtime.handlers.'../x']\npath = '/x'", "f.toml:1: runtime.handlers.../x: a handler's name"},
		{"streaming for everybody", "[streaming]\naddress = '0.0.0.0:10010'", `f.toml:2: streaming.address: "0.0.0.0:10010" is no loopback address`},
		{"streaming by name", "[streaming]\naddress = 'localhost:0'", `f.toml:2: streaming.address: "localhost:0" is no loopback address`},
		{"URL of a registry", "[image]\nplain_http = ['http://a:5000']", `f.toml:2: image.plain_http: "http://a:5000" is no host or host:port`},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := parse("f.toml", []byte(test.text))
			if err == nil || !strings.HasPrefix(err.Error(), test.want) {
				t.Errorf("got  %v\nwant %s", err, test.want)
			}
		})
	}
}

func TestNamedFileMustExist(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "berthd.toml")
	if _, err := load(missing); err == nil || !strings.Contains(err.Error(), missing) {
		t.Errorf("got %v", err)
	}
}

// execute runs the command line and returns what it printed.
func execute(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	cmd := command()
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SetArgs(args)
	err := cmd.Execute()
	return out.String(), err
}

func TestConfigCommands(t *testing.T) {
	if out, err := execute(t, "config", "default"); err != nil || out != string(defaultTOML) {
		t.Errorf("config default printed %q, %v", out, err)
	}
	file := filepath.Join(t.TempDir(), "berthd.toml")
	for text, wrong := range map[string]bool{string(defaultTOML): false, "socket = 1": true} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := execute(t, "config", "check", file); (err != nil) != wrong {
			t.Errorf("config check of %.20q: %v", text, err)
		}
	}
}

func TestFlagsAndCommandsAreDocumented(t *testing.T) { expect.Documented(t, command()) }
