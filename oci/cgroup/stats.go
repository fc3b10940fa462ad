package cgroup

import (
	"errors"
	"math"
	"time"
)

// ErrGone: the cgroup does not exist, or not any more.
var ErrGone = errors.New("cgroup is gone")

// NoLimit is the limit of what has none.
const NoLimit = math.MaxUint64

// Stats are the numbers of a cgroup with everything below it. What the kernel
// does not count there is nil.
type Stats struct {
	At       time.Time // when they were read
	CPU      *CPU
	Memory   *Memory
	Swap     *Swap
	Pressure Pressures
}

// CPU is time on all cores since the cgroup was made.
type CPU struct{ Usage time.Duration }

// Memory is in bytes; faults are counted since the cgroup was made.
type Memory struct {
	Usage       uint64 // with the page cache
	WorkingSet  uint64 // Usage without the file pages that would be reclaimed first
	RSS         uint64 // anonymous
	Limit       uint64 // its own, not one above it; NoLimit
	MinorFaults uint64
	MajorFaults uint64
}

// Swap is in bytes.
type Swap struct {
	Usage uint64
	Limit uint64 // of swap alone; NoLimit
}

// Pressures say for how long tasks were stalled for want of a resource (PSI).
// Only cgroup v2 has them, also where it stands beside v1 without a controller.
type Pressures struct{ CPU, Memory, IO *Pressure }

// Pressure is the stall of some tasks, and of all that had work to do.
type Pressure struct{ Some, Full Stall }

// Stall is a time since the cgroup was made, and its share in percent of the
// last 10, 60 and 300 seconds.
type Stall struct {
	Total                time.Duration
	Avg10, Avg60, Avg300 float64
}

// A source reads one file of a cgroup by its name; fs.ErrNotExist for what the
// cgroup does not have. The bytes are the caller's until the next call.
type source func(name string) ([]byte, error)

// sources are where the parts of Stats are read, nil for a controller that the
// cgroup is not in. Either version may have a controller, not both.
type sources struct {
	cpuV1, memoryV1 source
	v2              source
}

// stats reads everything. ErrGone if a file that is always there is not.
func (s sources) stats() (st Stats, err error) {
	st.At = time.Now()
	switch {
	case s.cpuV1 != nil:
		st.CPU, err = cpuV1(s.cpuV1)
	case s.v2 != nil:
		st.CPU, err = cpuV2(s.v2)
	}
	if err != nil {
		return Stats{}, err
	}
	switch {
	case s.memoryV1 != nil:
		st.Memory, st.Swap, err = memoryV1(s.memoryV1)
	case s.v2 != nil:
		st.Memory, st.Swap, err = memoryV2(s.v2)
	}
	if err == nil && s.v2 != nil {
		st.Pressure, err = pressures(s.v2)
	}
	if err != nil {
		return Stats{}, err
	}
	return st, nil
}
