package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"berth/oci/cgroup"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/manager"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Update is what a running container may use from now on. What it does not name
// stays as it is. The kernel looks at a quota together with its period, and at
// swap together with memory: of such a pair both are given or none.
type Update struct {
	Resources   *specs.LinuxResources // cpu, memory, hugepageLimits, unified; never devices
	OOMScoreAdj *int                  // of every process
}

// Limits is what an Update would change, as it was before: the contents of the
// cgroup's files by path, and oom_score_adj by pid.
type Limits struct {
	Files       map[string]string `json:",omitempty"`
	OOMScoreAdj map[int]int       `json:",omitempty"`
}

// Limits reads what u would change of a running container. ErrNotRunning.
func (r *Runtime) Limits(_ context.Context, c Container, u Update) (Limits, error) {
	m, err := openCgroup(c.Cgroup)
	if err != nil {
		return Limits{}, err
	}
	l := Limits{Files: map[string]string{}, OOMScoreAdj: map[int]int{}}
	for _, path := range limitFiles(m.GetPaths(), u.Resources) {
		text, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // the kernel was built without it; Update says so if it matters
		}
		if err != nil {
			return Limits{}, ended(err)
		}
		l.Files[path] = string(text)
	}
	if u.OOMScoreAdj == nil {
		return l, nil
	}
	pids, err := cgroup.Procs(c.Cgroup)
	for _, pid := range pids {
		if adj, err := readOOMScoreAdj(pid); err == nil {
			l.OOMScoreAdj[pid] = adj
		}
	}
	return l, err
}

// Update writes the limits of a running container, by itself and without its OCI
// runtime. It fails when memory would be limited to less than is in use. After
// an error some are written: Restore puts back what Limits had read.
// ErrNotRunning.
func (r *Runtime) Update(_ context.Context, c Container, u Update) error {
	m, err := openCgroup(c.Cgroup)
	if err != nil {
		return err
	}
	if u.Resources != nil {
		if err := m.Set(cgroupResources(u.Resources)); err != nil {
			return ended(err)
		}
	}
	if u.OOMScoreAdj == nil {
		return nil
	}
	return setOOMScoreAdj(c.Cgroup, *u.OOMScoreAdj, always)
}

// Restore puts back what Limits had read. Nil for a container that has ended.
func (r *Runtime) Restore(_ context.Context, c Container, l Limits) error {
	err := restoreFiles(l.Files)
	pids, listErr := cgroup.Procs(c.Cgroup)
	errs := []error{err, listErr}
	for pid, adj := range l.OOMScoreAdj {
		if slices.Contains(pids, pid) { // else it may be another's by now
			errs = append(errs, writeOOMScoreAdj(pid, adj))
		}
	}
	return errors.Join(errs...)
}

// restoreFiles writes files until each is as it was. The kernel takes some only
// in a certain order (memory before swap, or after it), so it tries until no
// further one is taken.
func restoreFiles(files map[string]string) error {
	for {
		var errs []error
		progress := false
		for _, path := range slices.Sorted(maps.Keys(files)) {
			text, err := os.ReadFile(path)
			switch {
			case errors.Is(ended(err), ErrNotRunning) || err == nil && string(text) == files[path]:
				continue
			case err == nil:
				err = checkUsage(path, files[path])
			}
			if err == nil {
				err = writeLines(path, files[path])
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("put back %s: %w", path, err))
				continue
			}
			text, err = os.ReadFile(path)
			progress = progress || err == nil && string(text) == files[path]
		}
		if len(errs) == 0 || !progress {
			return errors.Join(errs...)
		}
	}
}

// checkUsage refuses a memory limit below what is in use, as v1's kernel does
// itself: v2's would kill.
func checkUsage(path, limit string) error {
	most, err := strconv.ParseUint(strings.TrimSpace(limit), 10, 64)
	if filepath.Base(path) != "memory.max" || err != nil { // "max"
		return nil
	}
	text, err := os.ReadFile(filepath.Join(filepath.Dir(path), "memory.current"))
	if err != nil {
		return err
	}
	usage, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
	if err == nil && usage > most {
		err = fmt.Errorf("memory usage is %d bytes, more than %d", usage, most)
	}
	return err
}

// writeLines gives the kernel text line by line; nothing is one empty line.
func writeLines(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	for line := range strings.SplitSeq(strings.TrimSuffix(text, "\n"), "\n") {
		if _, err := f.WriteString(line + "\n"); err != nil {
			return err
		}
	}
	return nil
}

// openCgroup returns the driver, for v1 or v2, of a cgroup that has processes.
func openCgroup(path string) (cgroups.Manager, error) {
	pids, err := cgroup.Procs(path)
	if err != nil {
		return nil, err
	}
	if len(pids) == 0 {
		return nil, ErrNotRunning
	}
	return manager.New(&cgroups.Cgroup{Path: path, Resources: &cgroups.Resources{SkipDevices: true}})
}

// ended makes ErrNotRunning of the errors of a cgroup that is gone.
func ended(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV) {
		return fmt.Errorf("%w: %w", ErrNotRunning, err)
	}
	return err
}

// limitFiles are the files that hold what r names. paths are the driver's: by
// controller on v1, under "" on v2.
func limitFiles(paths map[string]string, r *specs.LinuxResources) []string {
	if r == nil {
		return nil
	}
	v2 := cgroups.IsCgroup2UnifiedMode()
	var files []string
	add := func(controller string, v1names, v2names []string) {
		dir, names := paths[controller], v1names
		if v2 {
			dir, names = paths[""], v2names
		}
		for _, name := range names {
			if dir != "" { // else the controller is not mounted
				files = append(files, filepath.Join(dir, name))
			}
		}
	}
	if r.CPU != nil {
		add("cpu", []string{"cpu.shares", "cpu.cfs_period_us", "cpu.cfs_quota_us"}, []string{"cpu.weight", "cpu.max"})
		cpuset := []string{"cpuset.cpus", "cpuset.mems"}
		add("cpuset", cpuset, cpuset)
	}
	if r.Memory != nil {
		add("memory", []string{"memory.limit_in_bytes", "memory.memsw.limit_in_bytes"}, []string{"memory.max", "memory.swap.max"})
	}
	for _, h := range r.HugepageLimits {
		size := "hugetlb." + h.Pagesize
		add("hugetlb", []string{size + ".limit_in_bytes", size + ".rsvd.limit_in_bytes"}, []string{size + ".max", size + ".rsvd.max"})
	}
	add("", nil, slices.Sorted(maps.Keys(r.Unified)))
	return files
}

// cgroupResources is r for the cgroup library.
func cgroupResources(r *specs.LinuxResources) *cgroups.Resources {
	// On v1 the kernel itself refuses a limit below what is in use; on v2 it
	// would kill.
	out := &cgroups.Resources{SkipDevices: true, MemoryCheckBeforeUpdate: true, Unified: r.Unified}
	if c := r.CPU; c != nil {
		out.CpusetCpus, out.CpusetMems = c.Cpus, c.Mems
		out.CpuShares = value(c.Shares)
		out.CpuWeight = cgroups.ConvertCPUSharesToCgroupV2Value(out.CpuShares)
		out.CpuQuota, out.CpuPeriod = value(c.Quota), value(c.Period)
	}
	if m := r.Memory; m != nil {
		out.Memory, out.MemorySwap = value(m.Limit), value(m.Swap)
	}
	for _, h := range r.HugepageLimits {
		out.HugetlbLimit = append(out.HugetlbLimit, &cgroups.HugepageLimit{Pagesize: h.Pagesize, Limit: h.Limit})
	}
	return out
}

func value[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

// oomPasses bounds the search for processes that have forked meanwhile: a child
// has its parent's value from the moment of the fork.
const oomPasses = 10

// setOOMScoreAdj sets oom_score_adj of the processes in a cgroup whose value
// changes says is to be another.
func setOOMScoreAdj(path string, adj int, changes func(now int) bool) error {
	for range oomPasses {
		pids, err := cgroup.Procs(path)
		if err != nil {
			return err
		}
		more := false
		for _, pid := range pids {
			if now, err := readOOMScoreAdj(pid); err != nil || now == adj || !changes(now) {
				continue // or it has ended
			}
			if err := writeOOMScoreAdj(pid, adj); err != nil {
				return err
			}
			more = true
		}
		if !more {
			break
		}
	}
	return nil
}

func always(int) bool { return true }

// keepOOMScoreAdj corrects that of an exec, and of what it has forked: runc gives
// it what the container began with, from its own state and whatever the exec's
// spec says, although an Update has changed that since. A container that ends
// meanwhile is the caller's to hear of.
func keepOOMScoreAdj(c Container, pid int, want *int) {
	if want == nil {
		return
	}
	got, err := readOOMScoreAdj(pid)
	if err != nil { // it has ended, and may have left a child
		got, err = firstOOMScoreAdj(c)
	}
	if err == nil && got != *want {
		_ = setOOMScoreAdj(c.Cgroup, *want, func(now int) bool { return now == got })
	}
}

// firstOOMScoreAdj is what the container began with.
func firstOOMScoreAdj(c Container) (int, error) {
	text, err := os.ReadFile(filepath.Join(c.Dir, specFile))
	if err != nil {
		return 0, err
	}
	var spec struct{ Process struct{ OOMScoreAdj int } }
	err = json.Unmarshal(text, &spec)
	return spec.Process.OOMScoreAdj, err
}

func oomScoreAdj(pid int) string { return filepath.Join("/proc", strconv.Itoa(pid), "oom_score_adj") }

func readOOMScoreAdj(pid int) (int, error) {
	text, err := os.ReadFile(oomScoreAdj(pid))
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(text)))
}

// writeOOMScoreAdj tolerates a process that has ended.
func writeOOMScoreAdj(pid, adj int) error {
	err := os.WriteFile(oomScoreAdj(pid), []byte(strconv.Itoa(adj)), 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
		return nil
	}
	return err
}
