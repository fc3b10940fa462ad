// Package runner is the keeper's one child: it runs OCI runtimes, makes and
// pins namespaces, attaches mounts, reads the output of containers and writes
// their logs.
//
// It is not a subreaper, so os/exec is safe in it, and it holds nothing but
// copies: it may be killed at any moment. What a successor needs is with the
// keeper (processes and files) and in the journal (the chunks of output that were
// under way). When the keeper dies, the copies serve the next keeper (orphan.go).
//
// Invariants
//
//   - A chunk of output is in the journal from before it is read until after it
//     is in the log. There is one at a time, unless a container makes a read wait.
//   - Nobody waits for a container: what may (opening, reading and closing its FIFOs)
//     is done without a lock, and holds up the loop for 50 ms, once.
//   - One runner at a time: whoever has the journal locked. It waits for the end
//     of its predecessor, which stays until it has handed over what its dead keeper
//     held, and of whatever that was about to execute.
//   - A successor first writes the journal's chunks to their logs; then it takes up
//     what the keeper knows. A runtime command that was left under way is waited
//     for by whoever asks for the same process.
//   - An attached client gets a chunk when it is in the log, whole or not at all,
//     and is left when it does not keep up: it holds up nobody.
//   - A process's output is known here until the keeper knows that it is drained.
//   - No read of output waits: see stream.go.
//   - Locks: output.mu is held for one chunk at a time, and while streams come and go; runner.mu guards
//     the tables of commands and of pods under way;
//     runner.taking is held while the keeper is asked for files, output.mu may be
//     taken below it; runner.asking, below taking, is held until the deputy has
//     copies of them; spawning is held while a program is started, and is a leaf.
//
// It imports the standard library and golang.org/x/sys only. Read program.go,
// protocol.go, runner.go with inherit.go and limits.go, orphan.go, command.go with
// spawn.go, nest.go and relief.go, killtree.go, scratch.go, strays.go and cut.go, clear.go;
// then output.go with stream.go, read.go, journal.go, lines.go and attach.go; then
// namespaces.go, init.go, userns.go and tryuserns.go (namespaces that are not the host's
// root's). log.go is
// the keeper's log, not a container's.
package runner
