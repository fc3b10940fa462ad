// Command bench compares Berth with containerd: `make bench-pods`.
//
// Both run on the same machine, with the same OCI runtime, CNI plugins, images and
// pods, and otherwise with their defaults. One CRI client does everything on the one
// and then on the other, who is first changes each time, and the table that comes out
// has both beside each other. Of Berth it knows nothing but its command line.
//
// A run lives in namespaces and cgroups of its own and in one directory, all of which
// go when it ends, whatever way it ends.
//
// Read in this order: main.go (the command line), alone.go (the processes of a run
// and their namespaces), bench.go (what a run is), side.go with berth.go,
// containerd.go, network.go and registry.go (what it starts), pod.go (the pods), then
// what is measured, a file for each: empty.go, isolated.go, burst.go, full.go,
// output.go, streaming.go with spdy.go; last proc.go (memory and CPU of processes),
// machine.go and table.go (what comes out). docs/performance.md says what each row
// means.
package main
