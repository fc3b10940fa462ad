package leak

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

// A snapshot is what exists at one moment: each thing's identity, which is
// unique for as long as the process lives, and the sentence that reports it.
type snapshot map[string]string

func take() snapshot {
	s := snapshot{}
	s.goroutines()
	s.files()
	s.mounts()
	s.netNamespaces()
	s.processes()
	return s
}

// since reports what s has and before has not.
func (s snapshot) since(before snapshot) []string {
	var left []string
	for id, sentence := range s {
		if _, was := before[id]; !was {
			left = append(left, sentence)
		}
	}
	slices.Sort(left)
	return left
}

func (s snapshot) goroutines() {
	for _, g := range strings.Split(stacks(), "\n\n")[1:] { // the first is this one
		if strings.Contains(g, "os/signal.signal_recv") {
			continue // started by the first signal.Notify, never ends
		}
		id, _, _ := strings.Cut(g, " [")
		s[id] = g
	}
}

func stacks() string {
	for size := 1 << 16; ; size *= 2 {
		buf := make([]byte, size)
		if n := runtime.Stack(buf, true); n < size {
			return string(bytes.TrimSpace(buf[:n]))
		}
	}
}

func (s snapshot) files() {
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		target, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err != nil {
			continue // the descriptor that ReadDir had
		}
		file := "open file " + e.Name() + " -> " + target
		s[file] = file
	}
}

// mounts adds the mounts of this mount namespace, and the cgroups of the
// hierarchies found among them.
func (s snapshot) mounts() {
	info, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(info)) {
		left, right, _ := strings.Cut(line, " - ")
		fields, source := strings.Fields(left), strings.Fields(right)
		if len(fields) < 5 || len(source) < 2 {
			continue
		}
		id, point, fstype := fields[0], fields[4], source[0]
		if point == "/run/netns" {
			continue // bound on itself once a boot, as ip-netns(8) does
		}
		s["mount "+id+" "+point] = "mount of " + source[1] + " (" + fstype + ") on " + point
		if fstype == "cgroup" || fstype == "cgroup2" {
			s.cgroups(point)
		}
	}
}

func (s snapshot) cgroups(hierarchy string) {
	tops, _ := filepath.Glob(filepath.Join(hierarchy, "berth*"))
	for _, top := range tops {
		filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				s["cgroup "+path] = "cgroup " + path
			}
			return nil
		})
	}
}

func (s snapshot) netNamespaces() {
	pins, _ := filepath.Glob("/run/netns/berth-*")
	for _, pin := range pins {
		s["netns "+pin] = "network namespace " + pin
	}
}

func (s snapshot) processes() {
	for _, p := range descendants(os.Getpid()) {
		s[p.key()] = p.String()
	}
}
