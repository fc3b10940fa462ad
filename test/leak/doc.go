// Package leak fails a test binary that leaves something behind.
//
// A package's TestMain is
//
//	func TestMain(m *testing.M) { leak.Main(m) }
//
// Main compares what exists before and after the tests: goroutines, open files,
// mounts, network namespaces, cgroups and child processes. Tests that kill a
// parent of processes (the keeper) use MainUnderReaper, which sees the orphans
// as well.
//
// Cgroups are seen only where their path begins with "/berth", network
// namespaces only where they are pinned as /run/netns/berth-…: tests name theirs
// so. Mounts are those of the whole mount namespace, so packages that mount are
// tested one after the other (go test -p 1).
//
// A test binary that plays another program looks at its arguments or environment
// before it calls Main.
//
// Read in this order: leak.go, snapshot.go, process.go, reaper.go, need.go.
package leak
