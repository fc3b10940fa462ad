package cgroup

import "time"

func cpuV1(read source) (*CPU, error) {
	nanoseconds, there, err := number(read, "cpuacct.usage")
	if err != nil {
		return nil, err
	}
	if !there {
		return nil, ErrGone
	}
	return &CPU{Usage: time.Duration(nanoseconds)}, nil
}

// memoryV1: swap is nil where the kernel does not count it (swapaccount=0).
func memoryV1(read source) (*Memory, *Swap, error) {
	usage, there, err := number(read, "memory.usage_in_bytes")
	if err != nil {
		return nil, nil, err
	}
	if !there {
		return nil, nil, ErrGone
	}
	limit, err := limitV1(read, "memory.limit_in_bytes")
	if err != nil {
		return nil, nil, err
	}
	b, err := present(read("memory.stat"))
	if err != nil {
		return nil, nil, err
	}
	m, err := memory(usage, limit, b, memoryKeys{"total_rss", "total_inactive_file", "total_pgfault", "total_pgmajfault"})
	if err != nil {
		return nil, nil, err
	}
	swapped, there, err := value(b, "total_swap")
	if err != nil || !there {
		return m, nil, err
	}
	both, err := limitV1(read, "memory.memsw.limit_in_bytes")
	if err != nil {
		return nil, nil, err
	}
	swap := &Swap{Usage: swapped, Limit: NoLimit}
	if both != NoLimit { // then memory has a limit as well, and never the greater one
		swap.Limit = both - min(limit, both)
	}
	return m, swap, nil
}

// unlimitedV1 is less than what v1 shows for no limit, which depends on the size
// of a page, and more than any machine has.
const unlimitedV1 = 1 << 62

// limitV1 is NoLimit also where there is no such file.
func limitV1(read source, name string) (uint64, error) {
	n, there, err := number(read, name)
	if err != nil {
		return 0, err
	}
	if !there || n >= unlimitedV1 {
		return NoLimit, nil
	}
	return n, nil
}
