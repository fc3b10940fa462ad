package main

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/pelletier/go-toml/v2"

	"berth/cni"
	"berth/image"
)

// defaultPath is read when no file is named; it need not exist.
const defaultPath = "/etc/berth/berthd.toml"

// defaultTOML documents every key and holds its default: there is no other
// place for either.
//
//go:embed berthd.toml
var defaultTOML []byte

// config is the configuration file. The keys are documented in berthd.toml.
type config struct {
	Socket     string          `toml:"socket" json:"socket"`
	RunDir     string          `toml:"run_dir" json:"run_dir"`
	DataDir    string          `toml:"data_dir" json:"data_dir"`
	LibexecDir string          `toml:"libexec_dir" json:"libexec_dir"`
	Runtime    runtimeConfig   `toml:"runtime" json:"runtime"`
	Network    networkConfig   `toml:"network" json:"network"`
	Image      imageConfig     `toml:"image" json:"image"`
	Container  containerConfig `toml:"container" json:"container"`
	Streaming  streamingConfig `toml:"streaming" json:"streaming"`
}

type runtimeConfig struct {
	Default  string                   `toml:"default" json:"default"`
	Timeout  duration                 `toml:"timeout" json:"timeout"`
	Handlers map[string]handlerConfig `toml:"handlers" json:"handlers"`
}

type handlerConfig struct {
	Path string `toml:"path" json:"path"`
}

type networkConfig struct {
	ConfDir string   `toml:"conf_dir" json:"conf_dir"`
	BinDirs []string `toml:"bin_dirs" json:"bin_dirs"`
	Builtin bool     `toml:"builtin" json:"builtin"`
	Timeout duration `toml:"timeout" json:"timeout"`

	UnprivilegedPorts bool `toml:"unprivileged_ports" json:"unprivileged_ports"`
	UnprivilegedPing  bool `toml:"unprivileged_ping" json:"unprivileged_ping"`
}

type imageConfig struct {
	PlainHTTP   []string `toml:"plain_http" json:"plain_http"`
	PullTimeout duration `toml:"pull_timeout" json:"pull_timeout"`
	PullMinRate int64    `toml:"pull_min_rate" json:"pull_min_rate"`
	ZstdWindow  int64    `toml:"zstd_window" json:"zstd_window"`
}

type containerConfig struct {
	Nofile uint64 `toml:"nofile" json:"nofile"`
}

type streamingConfig struct {
	Address string `toml:"address" json:"address"`
}

// duration is written as a text like "90s".
type duration time.Duration

func (d *duration) UnmarshalText(text []byte) error {
	parsed, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf(`%q is no duration: write it like "90s" or "2m"`, text)
	}
	*d = duration(parsed)
	return nil
}

func (d duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

func (c config) registries() image.Registries {
	return image.Registries{
		PlainHTTP: c.Image.PlainHTTP,
		Timeout:   time.Duration(c.Image.PullTimeout),
		MinRate:   c.Image.PullMinRate,
	}
}

func (c config) network() *cni.Network {
	n := &cni.Network{
		ConfDir:  c.Network.ConfDir,
		BinDirs:  c.Network.BinDirs,
		CacheDir: filepath.Join(c.DataDir, "cni"),
		Timeout:  time.Duration(c.Network.Timeout),
	}
	n.Builtin.Store(c.Network.Builtin)
	return n
}

// load reads the configuration file at path. An empty path is defaultPath,
// which may be missing.
func load(path string) (config, error) {
	named := path != ""
	if !named {
		path = defaultPath
	}
	text, err := os.ReadFile(path)
	if err != nil && (named || !errors.Is(err, fs.ErrNotExist)) {
		return config{}, fmt.Errorf("read configuration: %w", err)
	}
	return parse(path, text)
}

// parse decodes text over the defaults and checks every value. Each error
// stands on a line of its own, beginning with file and line.
func parse(file string, text []byte) (config, error) {
	var c config
	if err := decode("berthd.toml", defaultTOML, &c); err != nil {
		return config{}, err
	}
	if err := decode(file, text, &c); err != nil {
		return config{}, err
	}
	if err := check(c, file, keyLines(text)); err != nil {
		return config{}, err
	}
	return c, nil
}

func decode(file string, text []byte, into *config) error {
	err := toml.NewDecoder(bytes.NewReader(text)).DisallowUnknownFields().Decode(into)
	if unknown := (*toml.StrictMissingError)(nil); errors.As(err, &unknown) {
		var all []error
		for i := range unknown.Errors {
			e := &unknown.Errors[i]
			line, _ := e.Position()
			all = append(all, fmt.Errorf("%s:%d: unknown key %s", file, line, dotted(e.Key())))
		}
		return errors.Join(all...)
	}
	if wrong := (*toml.DecodeError)(nil); errors.As(err, &wrong) {
		line, _ := wrong.Position()
		if key := dotted(wrong.Key()); key != "" {
			return fmt.Errorf("%s:%d: %s: %w", file, line, key, wrong)
		}
		return fmt.Errorf("%s:%d: %w", file, line, wrong)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return nil
}
