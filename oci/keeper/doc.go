// Package keeper is the process that outlives the daemon: the parent of every
// container process, and the client that berthd reaches it by.
//
// berth-keeper is one binary and two processes. The keeper (this package's
// Main) is the subreaper: it waits for processes, writes their exit records and
// holds the files that must outlive everybody else. It starts one child, the
// runner (package runner), which runs OCI runtimes, reads output and writes
// logs, and which may die at any moment.
//
// Invariants
//
//   - A process is peeked at (WNOWAIT), its exit record is written, and only
//     then is it reaped: a kill between any two steps loses no exit code, on
//     Linux 6.15 and later that of the keeper itself included.
//   - A process with output is reaped, and its exit told to watchers, only when
//     the runner has said that its output is in the log.
//   - A zombie that nobody knows is reaped only when every runtime command that
//     was in flight when it was first seen has been settled: it may be a
//     container whose pid file has not been read yet.
//   - What berthd adds, it knows first: when the keeper dies, the next one is
//     told of every process by berthd, with copies of its files. The runner is
//     told by the keeper.
//   - The runner holds copies too (Deputy). When the keeper dies, the runner stays,
//     writes the exit records that are missing, and hands everything to the next
//     keeper, which connects to it before it listens. It leaves when that keeper's
//     own runner holds the same. So any two of berthd, the keeper and the runner
//     may die together.
//   - A container's process is held (watchBirth) by the runner, the keeper and berthd
//     while its runtime is at work: it may end before its start has, when its
//     parents are dead.
//   - The keeper's state belongs to one goroutine, the loop of keeper.go. Only
//     queues to its clients have a lock.
//   - Files that the keeper holds: stdin (write end), stdout and stderr (FIFOs,
//     read-write), tty (pty master) and its peer, log, pidfd; during a start, pidfds
//     of what may be the process.
//
// The keeper and the runner import the standard library and golang.org/x/sys
// only. Read protocol.go, then keeper.go (the loop), requests.go, process.go, child.go
// with exit.go (where an exit code becomes durable), birth.go (whose it is, during a
// start), console.go, fifo.go, queue.go, runner.go
// with inherit.go (what containers do not inherit) and signals.go, upgrade.go;
// deputy.go and takeover.go (the death of a keeper); then client.go (the connection)
// and tracked.go (the processes). step.go
// is where tests kill.
package keeper
