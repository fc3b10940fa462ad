// Package cni attaches pods to networks: it finds the network configuration,
// calls the CNI plugins through libcni, and remembers what is attached so that
// nothing stays attached without a pod.
//
// It knows pods only as an id and a network namespace path. CNI spec 1.1; which
// version is spoken with a plugin is what its configuration says.
//
// # Which network
//
// The operator's configuration in ConfDir is read at each Add and Status. The
// first valid file by name wins; invalid ones are logged by name and skipped. A
// directory without any configuration file means the built-in network, for pods
// or nodes that may use it (builtin.go). A directory with nothing but invalid
// files is an error and never the built-in network: its operator wants another.
//
// # What is remembered
//
//	CacheDir/attachments/<pod id>   a record: the pod and the whole configuration
//	CacheDir/results/               libcni's own cache: the result of each ADD
//	CacheDir/ipam/                  addresses of the built-in network (host-local)
//	CacheDir/programs/nft           a link: what the built-in network's plugins may run
//
// A record is written before the first plugin of an ADD runs and removed after
// the last plugin of a DEL has ended: whatever plugins may hold has a record, at
// whichever moment a process is killed. A DEL works from the record, so
// it does not matter what ConfDir says by then.
//
// # Locks
//
// In this order: the pod's own lock (one call at a time touches an attachment),
// Network.adding, Network.builtinMu, then one of Network.ownMu and
// Network.reportedMu. Plugins run under the first two only. Network.status has a
// lock of its own, held over the STATUS calls and no other lock.
//
// # Threads
//
// All that changes the host's network runs on the caller's thread, all that
// changes a pod's runs on a thread made for it (netns.go).
//
// Read in this order: network.go, config.go, add.go, del.go, record.go, gc.go,
// status.go, plugin.go, orphan.go, builtin.go with tables.go, netns.go, result.go.
package cni
