// Package oci runs pods and containers on the kernel: namespaces, OCI runtimes,
// cgroups and the processes that outlive the daemon.
//
// It knows nothing of CRI, of images or of networks. A caller hands it plain
// structs: a Pod (which namespaces, which cgroup) and a Container (which run
// directory, which runtime spec). What must survive the daemon is done by
// oci/keeper, and Runtime is its only user.
//
// Read in this order: runtime.go (the types), pod.go, userns.go, start.go, wait.go, refused.go,
// exec.go with nest.go, streams.go and console.go, attach.go, dial.go, stop.go,
// update.go, log.go, gc.go, then stats.go (what it costs, gauge.go, interfaces.go and
// rate.go), probe.go and features.go (what a runtime can), quirks.go (what one does
// otherwise than the others), controls.go, device.go and propagation.go (what the
// kernel can), rlimits.go, rundir.go and chroot.go.
//
// Locks: Runtime.mu guards the list of execs; a gauge's is held while cgroup files
// and netlink are read, and that of all gauges, for memory only, may be taken below it.
package oci
