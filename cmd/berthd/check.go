package main

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2/unstable"
)

// maxSocketPath is what fits into a unix socket's address with its final NUL.
const maxSocketPath = 107

// maxNofile is the kernel's default for fs.nr_open: no limit may be higher.
const maxNofile = 1 << 20

// maxMinRate is the most that a registry may be asked for, in bytes per second.
const maxMinRate = 100 << 20

var (
	handlerName  = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`) // as RuntimeClass demands
	registryHost = regexp.MustCompile(`^(\[[0-9a-fA-F:]+\]|[a-zA-Z0-9]([-.a-zA-Z0-9]*[a-zA-Z0-9])?)(:[0-9]{1,5})?$`)
)

// checker collects what is wrong with the values of one file.
type checker struct {
	file  string
	lines map[string]int // line of each key that the file sets
	wrong []error
}

// check returns an error for every value of c that cannot be meant.
func check(c config, file string, lines map[string]int) error {
	k := &checker{file: file, lines: lines}
	k.absolute("socket", c.Socket)
	k.that(len(c.Socket) <= maxSocketPath, "socket", "is longer than %d bytes", maxSocketPath)
	k.absolute("run_dir", c.RunDir)
	k.absolute("data_dir", c.DataDir)
	k.absolute("libexec_dir", c.LibexecDir)

	for _, name := range slices.Sorted(maps.Keys(c.Runtime.Handlers)) {
		k.handler(name, c.Runtime.Handlers[name])
	}
	_, known := c.Runtime.Handlers[c.Runtime.Default]
	k.that(known, "runtime.default", "%q is none of runtime.handlers", c.Runtime.Default)
	k.between("runtime.timeout", c.Runtime.Timeout, time.Second, time.Hour)

	k.absolute("network.conf_dir", c.Network.ConfDir)
	k.that(len(c.Network.BinDirs) > 0, "network.bin_dirs", "is empty")
	for _, dir := range c.Network.BinDirs {
		k.absolute("network.bin_dirs", dir)
	}
	k.between("network.timeout", c.Network.Timeout, time.Second, time.Hour)

	for _, host := range c.Image.PlainHTTP {
		k.that(registryHost.MatchString(host), "image.plain_http", "%q is no host or host:port", host)
	}
	k.between("image.pull_timeout", c.Image.PullTimeout, time.Second, time.Hour)
	rate := c.Image.PullMinRate
	k.that(rate >= 1 && rate <= maxMinRate, "image.pull_min_rate", "%d is not within 1 to %d", rate, maxMinRate)
	window := c.Image.ZstdWindow
	k.that(window >= minWindow && window <= maxWindow, "image.zstd_window", "%d is not within %d to %d", window, minWindow, maxWindow)

	nofile := c.Container.Nofile
	k.that(nofile >= 64 && nofile <= maxNofile, "container.nofile", "%d is not within 64 to %d", nofile, maxNofile)

	at, err := netip.ParseAddrPort(c.Streaming.Address)
	k.that(err == nil && at.Addr().IsLoopback(), "streaming.address", "%q is no loopback address with a port", c.Streaming.Address)
	return errors.Join(k.wrong...)
}

func (k *checker) handler(name string, h handlerConfig) {
	table := "runtime.handlers." + name
	k.that(handlerName.MatchString(name), table, "a handler's name has lower-case letters, digits and '-'")
	if h.Path != "" {
		k.absolute(table+".path", h.Path)
	}
}

func (k *checker) absolute(key, path string) {
	k.that(filepath.IsAbs(path) && filepath.Clean(path) == path, key, "%q is no absolute, clean path", path)
}

func (k *checker) between(key string, d duration, least, most time.Duration) {
	ok := time.Duration(d) >= least && time.Duration(d) <= most
	k.that(ok, key, "%v is not within %v to %v", time.Duration(d), least, most)
}

// that notes, unless ok, what is wrong with key.
func (k *checker) that(ok bool, key, format string, args ...any) {
	if ok {
		return
	}
	at := k.file
	if line := k.line(key); line != 0 {
		at = fmt.Sprintf("%s:%d", k.file, line)
	}
	k.wrong = append(k.wrong, fmt.Errorf("%s: %s: %s", at, key, fmt.Sprintf(format, args...)))
}

// line is where key stands in the file; where it does not, the nearest table
// around it; 0 if there is none.
func (k *checker) line(key string) int {
	for {
		if line := k.lines[key]; line != 0 {
			return line
		}
		dot := strings.LastIndexByte(key, '.')
		if dot < 0 {
			return 0
		}
		key = key[:dot]
	}
}

// keyLines returns the line of every key and table of a valid TOML text, by its
// dotted name. The decoder gives no position for a value that it understood.
func keyLines(text []byte) map[string]int {
	lines := map[string]int{}
	var p unstable.Parser
	p.Reset(text)
	var table []string
	for p.NextExpression() {
		node := p.Expression()
		name, line := keyOf(&p, node)
		if node.Kind == unstable.Table {
			table = name
			lines[dotted(table)] = line
			continue
		}
		noteLines(lines, &p, node, table)
	}
	return lines
}

// noteLines notes the line of a key and, if its value is an inline table, those
// of the keys in it.
func noteLines(lines map[string]int, p *unstable.Parser, node *unstable.Node, table []string) {
	if node.Kind != unstable.KeyValue {
		return
	}
	name, line := keyOf(p, node)
	name = append(slices.Clone(table), name...)
	lines[dotted(name)] = line
	if value := node.Value(); value.Kind == unstable.InlineTable {
		for children := value.Children(); children.Next(); {
			noteLines(lines, p, children.Node(), name)
		}
	}
}

func keyOf(p *unstable.Parser, node *unstable.Node) (name []string, line int) {
	for parts := node.Key(); parts.Next(); {
		part := parts.Node()
		name = append(name, string(part.Data))
		line = p.Shape(part.Raw).Start.Line
	}
	return name, line
}

func dotted[S ~[]string](key S) string { return strings.Join(key, ".") }

// Bounds of image.zstd_window: what the zstd tool uses by default, and what it reads.
const (
	minWindow = 1 << 20
	maxWindow = 128 << 20
)
