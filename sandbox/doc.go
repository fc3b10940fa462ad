// Package sandbox is the life of pods and containers: the one place where OCI
// runtimes, images and networks meet.
//
// # Records
//
// A pod is a directory, Dir/<id>, and a container one below it, Dir/<id>/c/<cid>.
// Each holds a config (the CRI message, verbatim) and a record (what has become
// of it). The record is the truth; memory is an index of it, and the kernel is
// compared with it. A change of a record is written first, then shown in memory,
// then answered. Nothing is synced to disk: a record does not outlive the boot.
// What must (identities, exit codes, attachments) is mirrored in the background.
//
// An operation writes its record before its first effect. All names of effects
// derive from the id, and every effect may be repeated. So there is one way to
// clean up: remove, which undoes whatever may be there. A failed creation, a
// crash and a caller's Remove all end in it, and what would not go is tried
// again in the background, also after a restart.
//
// # Operations
//
// An operation runs on a goroutine that Pods owns, apart from the RPC that asked
// for it: a caller who goes away changes nothing, and one who comes again joins.
// The slot of a pod or container holds the one operation that may change it; a
// second call of the same verb joins, a stronger one makes the weaker give way.
// A pod or container in creation is invisible until it is whole.
//
// # Locks
//
// In this order, and none of them is held over I/O except writing (and
// loadingAppArmor, a leaf, over the load of the default profile):
//
//	writing      of a pod or container: one change of its record at a time,
//	             held over the write. Readers never take it.
//	Pods.mu      the indexes: maps from ids, identities and uids.
//	Pod.mu       the record of a pod, and the records of its containers.
//	slot.mu, then background.mu; mirror.mu, patience.mu   leaves.
//
// Long waits (a runtime, a network, an exit) happen with none of them. List and
// Status read memory alone.
//
// # Reading order
//
// pods.go (what Pods needs of the world), pod.go (a pod and its containers), index.go
// (who finds them), listed.go (how many there may be), state.go, record.go, background.go, flight.go (who joins whom and
// gives way), again.go (what is tried again), errors.go, report.go (what the log has of a failure); then a file for each verb:
// run.go (files.go), create.go (etc.go), start.go (program.go), exit.go, stop.go (signal.go), remove.go,
// exec.go, attach.go, dial.go, log.go, update.go, stats.go (usage.go), status.go (info.go);
// then recover.go and mirror.go (what survives a reboot), and userns.go (what a pod's
// user namespace changes in all of them).
//
// validate.go, sysctls.go and validate_container.go say what is accepted, node.go what the machine
// can give, facts.go gathers what a spec needs from host and image, spec.go is pure.
// What a container has: resources.go, devices.go, mounts.go, views.go (images), volumes.go. Who its
// process is: security.go and what it calls, user.go, capabilities.go, seccomp.go,
// seccomp_default.go, apparmor.go, selinux.go, privileged.go.
package sandbox
