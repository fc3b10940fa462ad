// Package node runs a real kubelet against Berth: `make test-node`.
//
// The kubelet is standalone: its pods are the manifests in testdata, which are
// what a person would put into a node's static pod directory, but for three words
// that the tests fill in (apply in pod_test.go). All of them run at once, in one
// kubelet, because most of the time goes into waiting for the kubelet's own
// periods; the tests then look at one pod after the other.
//
// Building a kubelet takes minutes, so the tests have a build tag, node, and
// `make test` leaves them out. A kubelet kills the pods that it does not know and
// changes sysctls of its machine: the tests refuse to run outside of mount and
// network namespaces of their own (alone_test.go).
//
// Read in this order: node_test.go has the node and its processes,
// kubelet_test.go the kubelet and its API, pod_test.go what it says of pods,
// stream_test.go exec and port forwarding; story_test.go is what is tested, in
// the order in which it happens.
package node
