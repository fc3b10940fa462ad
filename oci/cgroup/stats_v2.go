package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"time"
)

// cpuV2 reads cpu.stat, which every cgroup of v2 has, with or without the cpu
// controller.
func cpuV2(read source) (*CPU, error) {
	b, err := present(read("cpu.stat"))
	if err != nil {
		return nil, err
	}
	microseconds, there, err := value(b, "usage_usec")
	if err == nil && !there {
		err = errors.New("no usage_usec")
	}
	if err != nil {
		return nil, fmt.Errorf("cpu.stat: %w", err)
	}
	return &CPU{Usage: time.Duration(microseconds) * time.Microsecond}, nil
}

// memoryV2 returns nil for what the memory controller, or swap, is not counted
// for.
func memoryV2(read source) (*Memory, *Swap, error) {
	usage, there, err := number(read, "memory.current")
	if err != nil || !there {
		return nil, nil, err
	}
	limit, there, err := number(read, "memory.max")
	if err != nil {
		return nil, nil, err
	}
	if !there {
		return nil, nil, ErrGone
	}
	b, err := present(read("memory.stat"))
	if err != nil {
		return nil, nil, err
	}
	m, err := memory(usage, limit, b, memoryKeys{"anon", "inactive_file", "pgfault", "pgmajfault"})
	if err != nil {
		return nil, nil, err
	}
	swap, err := swapV2(read)
	return m, swap, err
}

func swapV2(read source) (*Swap, error) {
	usage, there, err := number(read, "memory.swap.current")
	if err != nil || !there {
		return nil, err
	}
	limit, there, err := number(read, "memory.swap.max")
	if err != nil || !there {
		return nil, err
	}
	return &Swap{Usage: usage, Limit: limit}, nil
}

// pressures: the kernel may have PSI turned off, as a whole or for this cgroup.
func pressures(read source) (p Pressures, err error) {
	for _, part := range []struct {
		file string
		to   **Pressure
	}{{"cpu.pressure", &p.CPU}, {"memory.pressure", &p.Memory}, {"io.pressure", &p.IO}} {
		b, there, err := optional(read(part.file))
		if err != nil {
			return Pressures{}, err
		}
		if !there {
			continue
		}
		if *part.to, err = pressure(b); err != nil {
			return Pressures{}, fmt.Errorf("%s: %w", part.file, err)
		}
	}
	return p, nil
}

// pressure parses two lines, of which the second may be missing:
//
//	some avg10=0.00 avg60=0.00 avg300=0.00 total=4414
//	full avg10=0.00 avg60=0.00 avg300=0.00 total=3103
func pressure(b []byte) (*Pressure, error) {
	p := new(Pressure)
	for line := range bytes.Lines(b) {
		line = bytes.TrimSpace(line)
		kind, rest, _ := bytes.Cut(line, []byte(" "))
		var err error
		switch string(kind) {
		case "some":
			p.Some, err = stall(rest)
		case "full":
			p.Full, err = stall(rest)
		}
		if err != nil {
			return nil, fmt.Errorf("%q: %w", line, err)
		}
	}
	return p, nil
}

func stall(line []byte) (s Stall, err error) {
	for field := range bytes.FieldsSeq(line) {
		key, text, _ := bytes.Cut(field, []byte("="))
		switch string(key) {
		case "avg10":
			s.Avg10, err = strconv.ParseFloat(string(text), 64)
		case "avg60":
			s.Avg60, err = strconv.ParseFloat(string(text), 64)
		case "avg300":
			s.Avg300, err = strconv.ParseFloat(string(text), 64)
		case "total":
			var microseconds uint64
			microseconds, err = strconv.ParseUint(string(text), 10, 64)
			s.Total = time.Duration(microseconds) * time.Microsecond
		}
		if err != nil {
			return Stall{}, err
		}
	}
	return s, nil
}
