// Package cgroup kills and removes whole cgroups, reads their numbers and counts
// what the kernel has killed in them, on cgroup v1, v2 and both at once, for the
// processes that must not depend on more than the standard library and x/sys.
// Limits are set by OCI runtimes and by package oci.
//
// A path is absolute and the same in every hierarchy: /berth/ID is
// /sys/fs/cgroup/berth/ID on v2 and /sys/fs/cgroup/CONTROLLER/berth/ID on v1.
//
// Read in this order: cgroup.go, nest.go, process.go, kill.go, oom.go; stats.go (what the
// numbers are), dir.go (how their files are read), then stats_v1.go, stats_v2.go and
// stats_file.go, which are pure.
package cgroup
