package main

import (
	"slices"
	"strings"
	"testing"

	"berth/cni"
	"berth/image"
)

func TestChanges(t *testing.T) {
	for _, test := range []struct {
		text string
		want []string
	}{
		{"", nil},
		{"[network]\nbuiltin = false", nil},
		{"[network]\nbuiltin = true\n[image]\npull_timeout = \"2m\"", []string{"image.pull_timeout", "network.builtin"}},
		{"run_dir = \"/run/b\"\n[image]\nplain_http = [\"a\"]", []string{"image.plain_http", "run_dir"}},
		{"[runtime.handlers.kata]\npath = \"/kata\"", []string{"runtime.handlers.kata.path"}},
	} {
		c, err := parse("test.toml", []byte(test.text))
		if err != nil {
			t.Fatal(err)
		}
		if got := changes(defaults(t), c); !slices.Equal(got, test.want) {
			t.Errorf("%q changes %v, want %v", test.text, got, test.want)
		}
		if got := changes(c, defaults(t)); !slices.Equal(got, test.want) {
			t.Errorf("back from %q changes %v, want %v", test.text, got, test.want)
		}
	}
}

func TestAFileIsTakenWholeOrNotAtAll(t *testing.T) {
	s := &settings{config: defaults(t), images: &image.Store{}, network: &cni.Network{}}
	c := defaults(t)
	c.Network.Builtin = true
	c.Image.PlainHTTP = []string{"registry.example"}
	if err := s.change(c); err != nil {
		t.Fatal(err)
	}
	if !s.network.Builtin.Load() || !slices.Equal(s.images.Registries.PlainHTTP, c.Image.PlainHTTP) {
		t.Error("the change had no effect")
	}
	if !strings.Contains(s.info()["config"], "registry.example") {
		t.Errorf("the status shows %s", s.info()["config"])
	}
	c.Network.Builtin = false
	c.DataDir = "/elsewhere"
	c.Container.Nofile = 100
	err := s.change(c)
	if err == nil || !strings.Contains(err.Error(), "container.nofile, data_dir needs a restart") {
		t.Errorf("fixed keys: %v", err)
	}
	if !s.network.Builtin.Load() || s.config.Container.Nofile == 100 {
		t.Error("half of a file was taken")
	}
}

// An operator reads there which keys a SIGHUP is enough for.
func TestLiveKeysAreDocumented(t *testing.T) {
	text := strings.Split(string(defaultTOML), "\n")
	lines := keyLines(defaultTOML)
	for _, key := range liveKeys {
		at := lines[key] - 1
		if at < 0 {
			t.Fatalf("%s is no key", key)
		}
		for at--; strings.HasPrefix(text[at], "#"); at-- {
			if strings.Contains(text[at], "SIGHUP") {
				break
			}
		}
		if !strings.Contains(text[at], "SIGHUP") {
			t.Errorf("%s does not say that SIGHUP is enough", key)
		}
	}
}
