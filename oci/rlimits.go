package oci

import (
	"berth/oci/keeper/runner"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// resources are the limits that a process has, by their names in a runtime spec.
var resources = map[string]int{
	"RLIMIT_AS": unix.RLIMIT_AS, "RLIMIT_CORE": unix.RLIMIT_CORE, "RLIMIT_CPU": unix.RLIMIT_CPU,
	"RLIMIT_DATA": unix.RLIMIT_DATA, "RLIMIT_FSIZE": unix.RLIMIT_FSIZE, "RLIMIT_LOCKS": unix.RLIMIT_LOCKS,
	"RLIMIT_MEMLOCK": unix.RLIMIT_MEMLOCK, "RLIMIT_MSGQUEUE": unix.RLIMIT_MSGQUEUE, "RLIMIT_NICE": unix.RLIMIT_NICE,
	"RLIMIT_NOFILE": unix.RLIMIT_NOFILE, "RLIMIT_NPROC": unix.RLIMIT_NPROC, "RLIMIT_RSS": unix.RLIMIT_RSS,
	"RLIMIT_RTPRIO": unix.RLIMIT_RTPRIO, "RLIMIT_RTTIME": unix.RLIMIT_RTTIME, "RLIMIT_SIGPENDING": unix.RLIMIT_SIGPENDING,
	"RLIMIT_STACK": unix.RLIMIT_STACK,
}

// Rlimits are all limits of a container's process, with noFile as that of open
// files: those that the kernel gives the first process of a machine, but for
// processes and core files, which are the cgroup's and the node's to bound, and for
// locked memory, of which a node with RDMA gives more by LimitMEMLOCK= of berthd's
// unit. A limit above this process's own stays at that, unless this process may raise
// it.
//
// A spec names all of them: what it leaves out comes from whoever started berthd.
func Rlimits(noFile uint64) []specs.POSIXRlimit {
	const unlimited = unix.RLIM_INFINITY
	queued := uint64(unlimited)
	if threads, err := runner.KernelSetting("kernel/threads-max"); err == nil {
		queued = threads / 2
	}
	locked := uint64(8 << 20)
	var own unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_MEMLOCK, &own) == nil {
		locked = max(locked, own.Max)
	}
	limits := []specs.POSIXRlimit{
		{Type: "RLIMIT_AS", Soft: unlimited, Hard: unlimited},
		{Type: "RLIMIT_CORE", Soft: unlimited, Hard: unlimited},
		{Type: "RLIMIT_CPU", Soft: unlimited, Hard: unlimited},
		{Type: "RLIMIT_DATA", Soft: unlimited, Hard: unlimited},
		{Type: "RLIMIT_FSIZE", Soft: unlimited, Hard: unlimited},
		{Type: "RLIMIT_LOCKS", Soft: unlimited, Hard: unlimited},
		{Type: "RLIMIT_MEMLOCK", Soft: locked, Hard: locked},
		{Type: "RLIMIT_MSGQUEUE", Soft: 819200, Hard: 819200},
		{Type: "RLIMIT_NICE"},
		{Type: "RLIMIT_NOFILE", Soft: noFile, Hard: noFile},
		{Type: "RLIMIT_NPROC", Soft: unlimited, Hard: unlimited},
		{Type: "RLIMIT_RSS", Soft: unlimited, Hard: unlimited},
		{Type: "RLIMIT_RTPRIO"},
		{Type: "RLIMIT_RTTIME", Soft: unlimited, Hard: unlimited},
		{Type: "RLIMIT_SIGPENDING", Soft: queued, Hard: queued},
		{Type: "RLIMIT_STACK", Soft: 8 << 20, Hard: unlimited},
	}
	for i, l := range limits {
		limits[i].Hard = runner.RaiseLimit(resources[l.Type], l.Hard)
		limits[i].Soft = min(l.Soft, limits[i].Hard)
	}
	return limits
}
