package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/test/leak"
)

// files are the contents of a cgroup's files by "hierarchy/name".
type files map[string]string

// recorded reads testdata. The files of hybrid are what Linux 6.18 showed of a
// cgroup; those of v2 have the form of the kernel's cgroup-v2.rst.
func recorded(t *testing.T, name string) files {
	t.Helper()
	all := files{}
	paths, err := filepath.Glob(filepath.Join("testdata", name, "*", "*"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("no files of %s: %v", name, err)
	}
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		all[filepath.Join(filepath.Base(filepath.Dir(path)), filepath.Base(path))] = string(b)
	}
	return all
}

// absent as a content is a file that there is not; the name of an errno is one
// that cannot be read.
const absent = "ENOENT"

var unreadable = map[string]error{absent: unix.ENOENT, "EOPNOTSUPP": unix.EOPNOTSUPP, "ENODEV": unix.ENODEV, "EACCES": unix.EACCES}

// sources are those of the hierarchies that have a file.
func (f files) sources() sources {
	in := func(hierarchy string) source {
		for path := range f {
			if filepath.Dir(path) == hierarchy {
				return func(name string) ([]byte, error) {
					text, there := f[filepath.Join(hierarchy, name)]
					if !there {
						text = absent
					}
					if err := unreadable[text]; err != nil {
						return nil, &os.PathError{Op: "open", Path: name, Err: err}
					}
					return []byte(text), nil
				}
			}
		}
		return nil
	}
	return sources{cpuV1: in("cpuacct"), memoryV1: in("memory"), v2: in("unified")}
}

func TestStatsOfRecordedFiles(t *testing.T) {
	const µs = time.Microsecond
	hybrid := Stats{
		CPU:    &CPU{Usage: 576005876},
		Memory: &Memory{Usage: 134217728, WorkingSet: 134217728, RSS: 133808128, Limit: 134217728, MinorFaults: 40818, MajorFaults: 3},
		Swap:   &Swap{Usage: 0, Limit: 201326592 - 134217728},
		Pressure: Pressures{
			CPU:    &Pressure{Some: Stall{1759562 * µs, 11.05, 1.99, 0.41}, Full: Stall{1740005 * µs, 10.86, 1.96, 0.41}},
			Memory: &Pressure{Some: Stall{Total: 477344 * µs}, Full: Stall{Total: 477344 * µs}},
			IO:     &Pressure{Some: Stall{Total: 21207 * µs}, Full: Stall{Total: 21207 * µs}},
		},
	}
	v2 := Stats{
		CPU:    &CPU{Usage: 1234567 * µs},
		Memory: &Memory{Usage: 52428800, WorkingSet: 52428800 - 12582912, RSS: 20971520, Limit: 67108864, MinorFaults: 40800, MajorFaults: 21},
		Swap:   &Swap{Usage: 1048576, Limit: 33554432},
		Pressure: Pressures{
			CPU:    &Pressure{Some: Stall{4414 * µs, 1.5, 0.75, 0.25}, Full: Stall{3103 * µs, 0.5, 0.1, 0.05}},
			Memory: &Pressure{Some: Stall{Total: 12 * µs}, Full: Stall{Total: 10 * µs}},
			IO:     &Pressure{Some: Stall{18446744073 * µs, 0, 12.34, 100}, Full: Stall{9 * µs, 0, 0, 99.99}},
		},
	}
	for _, test := range []struct {
		name   string
		files  string
		change files
		want   func(*Stats) // from what hybrid or v2 says as it is
	}{
		{"v1 beside v2", "hybrid", nil, nil},
		{"v1 alone", "hybrid", files{"unified/cpu.stat": absent, "unified/cpu.pressure": absent, "unified/memory.pressure": absent, "unified/io.pressure": absent}, func(s *Stats) { s.Pressure = Pressures{} }},
		{"v1 without limits", "hybrid", files{"memory/memory.limit_in_bytes": "9223372036854771712\n", "memory/memory.memsw.limit_in_bytes": "9223372036854771712\n"}, func(s *Stats) { s.Memory.Limit, s.Swap.Limit = NoLimit, NoLimit }},
		{"v1 with a limit of memory alone", "hybrid", files{"memory/memory.memsw.limit_in_bytes": "9223372036854771712\n"}, func(s *Stats) { s.Swap.Limit = NoLimit }},
		{"v1 without limits, pages of 64 KiB", "hybrid", files{"memory/memory.limit_in_bytes": "9223372036854710272\n", "memory/memory.memsw.limit_in_bytes": "9223372036854710272\n"}, func(s *Stats) { s.Memory.Limit, s.Swap.Limit = NoLimit, NoLimit }},
		{"v1 where swap is not counted", "hybrid", files{"memory/memory.stat": "total_rss 133808128\ntotal_inactive_file 0\ntotal_pgfault 40821\ntotal_pgmajfault 3\n", "memory/memory.memsw.limit_in_bytes": absent}, func(s *Stats) { s.Swap = nil }},
		{"v1, more inactive than used", "hybrid", files{"memory/memory.stat": "total_rss 133808128\ntotal_inactive_file 134217729\ntotal_swap 0\ntotal_pgfault 40821\ntotal_pgmajfault 3\n"}, func(s *Stats) { s.Memory.WorkingSet = 0 }},
		{"v2", "v2", nil, nil},
		{"v2 without limits", "v2", files{"unified/memory.max": "max\n", "unified/memory.swap.max": "max\n"}, func(s *Stats) { s.Memory.Limit, s.Swap.Limit = NoLimit, NoLimit }},
		{"v2 without the memory controller", "v2", files{"unified/memory.current": absent, "unified/memory.max": absent, "unified/memory.stat": absent, "unified/memory.swap.current": absent, "unified/memory.swap.max": absent}, func(s *Stats) { s.Memory, s.Swap = nil, nil }},
		{"v2 where swap is not counted", "v2", files{"unified/memory.swap.current": absent, "unified/memory.swap.max": absent}, func(s *Stats) { s.Swap = nil }},
		{"v2 without PSI", "v2", files{"unified/cpu.pressure": absent, "unified/memory.pressure": absent, "unified/io.pressure": absent}, func(s *Stats) { s.Pressure = Pressures{} }},
		{"v2, PSI turned off at boot", "v2", files{"unified/cpu.pressure": "EOPNOTSUPP", "unified/memory.pressure": "EOPNOTSUPP", "unified/io.pressure": "EOPNOTSUPP"}, func(s *Stats) { s.Pressure = Pressures{} }},
		{"v2, an old kernel knows no full pressure of CPU", "v2", files{"unified/cpu.pressure": "some avg10=1.50 avg60=0.75 avg300=0.25 total=4414\n"}, func(s *Stats) { s.Pressure.CPU = &Pressure{Some: s.Pressure.CPU.Some} }},
	} {
		t.Run(test.name, func(t *testing.T) {
			all := recorded(t, test.files)
			maps.Copy(all, test.change)
			got, err := all.sources().stats()
			if err != nil {
				t.Fatal(err)
			}
			if got.At.IsZero() {
				t.Error("no time")
			}
			got.At = time.Time{}
			want := copyStats(map[string]Stats{"hybrid": hybrid, "v2": v2}[test.files])
			if test.want != nil {
				test.want(&want)
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("got %s\nwant %s", show(got), show(want))
			}
		})
	}
}

// copyStats copies what the cases change.
func copyStats(s Stats) Stats {
	memory, swap := *s.Memory, *s.Swap
	s.Memory, s.Swap = &memory, &swap
	return s
}

func show(s Stats) string {
	text := fmt.Sprintf("%+v %+v %+v", s.CPU, s.Memory, s.Swap)
	for _, p := range []*Pressure{s.Pressure.CPU, s.Pressure.Memory, s.Pressure.IO} {
		text += fmt.Sprintf(" %+v", p)
	}
	return text
}

// What is missing in a cgroup that is being removed is not taken for what a
// kernel does not count, and nonsense is not a number.
func TestStatsErrors(t *testing.T) {
	for _, test := range []struct {
		files, file, content string
		want                 string // "": ErrGone
	}{
		{"hybrid", "cpuacct/cpuacct.usage", absent, ""},
		{"hybrid", "memory/memory.usage_in_bytes", absent, ""},
		{"hybrid", "memory/memory.stat", absent, ""},
		{"hybrid", "memory/memory.limit_in_bytes", "ENODEV", ""},
		{"hybrid", "memory/memory.memsw.limit_in_bytes", "ENODEV", ""},
		{"hybrid", "unified/io.pressure", "ENODEV", ""},
		{"v2", "unified/cpu.stat", absent, ""},
		{"v2", "unified/memory.max", absent, ""},
		{"v2", "unified/memory.stat", absent, ""},
		{"v2", "unified/memory.swap.current", "ENODEV", ""},
		{"hybrid", "cpuacct/cpuacct.usage", "-1\n", "cpuacct.usage"},
		{"hybrid", "memory/memory.stat", "cache 0\n", "no total_rss"},
		{"hybrid", "memory/memory.usage_in_bytes", "", "memory.usage_in_bytes"},
		{"v2", "unified/cpu.stat", "user_usec 1\n", "no usage_usec"},
		{"v2", "unified/cpu.stat", "usage_usec x\n", "cpu.stat: usage_usec"},
		{"v2", "unified/cpu.pressure", "some avg10=x\n", "cpu.pressure"},
		{"v2", "unified/memory.current", "99999999999999999999\n", "memory.current"},
		{"v2", "unified/memory.swap.max", "EACCES", "memory.swap.max"},
	} {
		t.Run(test.file+" "+test.content, func(t *testing.T) {
			all := recorded(t, test.files)
			all[test.file] = test.content
			got, err := all.sources().stats()
			if test.want == "" && !errors.Is(err, ErrGone) || test.want != "" && (err == nil || errors.Is(err, ErrGone) || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("%s, %v", show(got), err)
			}
		})
	}
}

// The numbers of a real cgroup, against what the kernel's files say before and
// after.
func TestDirStats(t *testing.T) {
	leak.NeedTool(t, "dd")
	p := testGroup(t)
	// 20 MiB of anonymous memory, which dd keeps for as long as its output waits.
	cmd := exec.Command("sh", "-c", "read x; exec dd if=/dev/zero bs=20M count=2")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	enroll(t, p, cmd)
	if _, err := out.Read(make([]byte, 1)); err != nil { // its buffer is full
		t.Fatal(err)
	}
	d, err := Open(p)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	before := cpuTime(t, p)
	s, err := d.Stats()
	if err != nil {
		t.Fatal(err)
	}
	if after := cpuTime(t, p); s.CPU == nil || s.CPU.Usage < before || s.CPU.Usage > after {
		t.Errorf("CPU %+v, the kernel said %v and %v", s.CPU, before, after)
	}
	if s.Memory == nil {
		t.Fatal("no memory: no controller for it here?")
	}
	if m := s.Memory; m.RSS < 20<<20 || m.Usage < m.RSS || m.WorkingSet < m.RSS || m.Limit != NoLimit || m.MinorFaults == 0 {
		t.Errorf("memory %+v of a process that has filled 20 MiB", m)
	}
	if Unified() != "" && (s.Pressure.CPU == nil || s.Pressure.Memory == nil || s.Pressure.IO == nil) {
		t.Errorf("pressure %+v on a node with v2", s.Pressure)
	}
}

// cpuTime is what the kernel says of all hierarchies of p that count it.
func cpuTime(t *testing.T, p string) time.Duration {
	t.Helper()
	for _, d := range dirs(p) {
		if b, err := os.ReadFile(filepath.Join(d, "cpuacct.usage")); err == nil {
			var n int64
			if _, err := fmt.Sscan(string(b), &n); err != nil {
				t.Fatal(err)
			}
			return time.Duration(n)
		}
	}
	b, err := os.ReadFile(filepath.Join(Unified(), p, "cpu.stat"))
	if err != nil {
		t.Fatal(err)
	}
	n, _, err := value(b, "usage_usec")
	if err != nil {
		t.Fatal(err)
	}
	return time.Duration(n) * time.Microsecond
}

// A limit in the real files of the hierarchy with the memory controller.
func TestDirStatsLimit(t *testing.T) {
	p := testGroup(t)
	member(t, p, "exec sleep 1000")
	set := false
	for _, d := range dirs(p) {
		for _, name := range []string{"memory.limit_in_bytes", "memory.max"} {
			if err := write(filepath.Join(d, name), "67108864"); err == nil {
				set = true
			} else if !errors.Is(err, fs.ErrNotExist) {
				t.Fatal(err)
			}
		}
	}
	if !set {
		t.Fatal("no memory controller")
	}
	d, err := Open(p)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	s, err := d.Stats()
	if err != nil || s.Memory.Limit != 64<<20 {
		t.Errorf("memory %+v, %v", s.Memory, err)
	}
}

func TestDirProcesses(t *testing.T) {
	p := testGroup(t)
	member(t, p, "sleep 1000 & sleep 1000 & exec sleep 1000")
	d, err := Open(p)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	await(t, func() bool { n, err := d.Processes(); return err == nil && n == 3 })
	// A parent's own are none.
	member(t, p+"/below", "exec sleep 1000")
	own, err := d.Own()
	whole, err2 := d.Processes()
	if own != 3 || whole != 4 || err != nil || err2 != nil {
		t.Errorf("own %d, whole %d, %v, %v", own, whole, err, err2)
	}
}

// Guards against counting threads as soon as there is a cgroup below, as an exec
// has; what is deeper is not walked.
func TestDirProcessesBelow(t *testing.T) {
	p := testGroup(t)
	member(t, p, "exec sleep 1000")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := &exec.Cmd{Path: self, Args: []string{threadsName}}
	enroll(t, p+"/exec", cmd)
	tasks := func() int {
		all, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", cmd.Process.Pid))
		return len(all)
	}
	await(t, func() bool { return tasks() > 1 })
	d, err := Open(p)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if n, err := d.Processes(); n != 2 || err != nil {
		t.Errorf("%d processes, %v, want 2", n, err)
	}
	member(t, p+"/deep/deeper", "exec sleep 1000")
	if n, err := d.Processes(); n < 4 || err != nil {
		t.Errorf("%d, %v, want the kernel's count of threads", n, err)
	}
}

// await asks until it is true.
func await(t *testing.T, ask func() bool) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	for !ask() {
		select {
		case <-again.C:
		case <-deadline:
			t.Fatal("not in 10 seconds")
		}
	}
}

// A cgroup that is removed while it is open, and made again, is another one.
func TestDirOfARemovedCgroup(t *testing.T) {
	p := testGroup(t)
	if _, err := Open(p); !errors.Is(err, ErrGone) {
		t.Errorf("open before it is made: %v", err)
	}
	cmd := member(t, p, "exec sleep 1000")
	d, err := Open(p)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := syscall.Kill(cmd.Process.Pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // its error is the signal
	if err := Remove(p); err != nil {
		t.Fatal(err)
	}
	if s, err := d.Stats(); !errors.Is(err, ErrGone) {
		t.Errorf("removed: %s, %v", show(s), err)
	}
	if n, err := d.Processes(); !errors.Is(err, ErrGone) {
		t.Errorf("removed: %d processes, %v", n, err)
	}
	member(t, p, "exec sleep 1000")
	if s, err := d.Stats(); !errors.Is(err, ErrGone) {
		t.Errorf("made again: %s, %v", show(s), err)
	}
	if _, err := Open("/"); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("open of the root: %v", err)
	}
}
