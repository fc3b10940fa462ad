// Package conformance tests a living berthd through plain CRI calls, as a
// kubelet makes them: the built programs, the real OCI runtimes, the built-in
// network, images from a registry on loopback.
//
// Its files follow the groups of RPCs; each test shows one obligation of CRI or
// one that the kubelet silently relies on, and runs once with each OCI runtime,
// on a berthd of its own. node_test.go is that berthd and what it takes to use
// it: after each test it is stopped, and nothing may be left.
package conformance
