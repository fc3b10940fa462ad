// Package cgroup kills and removes whole cgroups, on cgroup v1, v2 and both at
// once, for the processes that must not depend on more than the standard
// library and x/sys. Limits are set by OCI runtimes; this package only ends
// things.
//
// A path is absolute and the same in every hierarchy: /berth/ID is
// /sys/fs/cgroup/berth/ID on v2 and /sys/fs/cgroup/CONTROLLER/berth/ID on v1.
package cgroup
