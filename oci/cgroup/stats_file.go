package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"strconv"

	"golang.org/x/sys/unix"
)

// optional sorts out what a read of a file that a cgroup need not have says. A
// cgroup that goes away while a file of it is open says ENODEV.
func optional(b []byte, err error) (_ []byte, there bool, _ error) {
	switch {
	case err == nil:
		return b, true, nil
	case errors.Is(err, unix.ENODEV):
		return nil, false, ErrGone
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.EOPNOTSUPP):
		return nil, false, nil
	}
	return nil, false, err
}

// present is for a file that every cgroup has.
func present(b []byte, err error) ([]byte, error) {
	b, there, err := optional(b, err)
	if err == nil && !there {
		err = ErrGone
	}
	return b, err
}

// number reads a file of one number, or "max", which is NoLimit.
func number(read source, name string) (n uint64, there bool, err error) {
	b, there, err := optional(read(name))
	if err != nil || !there {
		return 0, false, err
	}
	b = bytes.TrimSpace(b)
	if string(b) == "max" {
		return NoLimit, true, nil
	}
	if n, err = strconv.ParseUint(string(b), 10, 64); err != nil {
		return 0, false, fmt.Errorf("%s: %w", name, err)
	}
	return n, true, nil
}

// value finds the number of one key in lines of a key and a number.
func value(b []byte, key string) (n uint64, there bool, err error) {
	for line := range bytes.Lines(b) {
		name, text, _ := bytes.Cut(bytes.TrimSpace(line), []byte(" "))
		if string(name) != key {
			continue
		}
		if n, err = strconv.ParseUint(string(text), 10, 64); err != nil {
			return 0, false, fmt.Errorf("%s: %w", key, err)
		}
		return n, true, nil
	}
	return 0, false, nil
}

// memoryKeys are the keys of memory.stat, which the versions name differently.
type memoryKeys struct{ rss, inactive, faults, major string }

// memory puts together what is in memory.stat and in files of one number.
func memory(usage, limit uint64, stat []byte, keys memoryKeys) (*Memory, error) {
	var rss, inactive, faults, major uint64
	for _, part := range []struct {
		key string
		to  *uint64
	}{{keys.rss, &rss}, {keys.inactive, &inactive}, {keys.faults, &faults}, {keys.major, &major}} {
		n, there, err := value(stat, part.key)
		if err == nil && !there {
			err = fmt.Errorf("no %s", part.key)
		}
		if err != nil {
			return nil, fmt.Errorf("memory.stat: %w", err)
		}
		*part.to = n
	}
	return &Memory{
		Usage: usage,
		// The files are read one after the other: what is part of the whole may
		// have outgrown it meanwhile.
		WorkingSet:  usage - min(inactive, usage),
		RSS:         rss,
		Limit:       limit,
		MinorFaults: faults - min(major, faults), // the kernel counts major ones as both
		MajorFaults: major,
	}, nil
}
