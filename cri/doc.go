// Package cri is the gRPC face of Berth: it serves CRI v1 to the kubelet and
// crictl, and Berth's own admin service (cri/admin) to the berth command.
//
// It translates and nothing more. A handler finds the pod, container or image
// that its request names, calls the verb of the same name in package sandbox or
// image, which check the request's config, and returns what that says. No state of a
// pod lives here: every decision about one is made in package sandbox. The locks are
// those of offered, waiting and open streaming sessions, of the descriptors that these
// may have, and of an ExecSync's output, and are leaves.
//
// Three things hold for every call, because they are done once, in the
// interceptors (intercept.go):
//
//   - errors become gRPC codes in the one table of errors.go;
//   - a panic ends its call with Internal, not the daemon;
//   - the access log names the call and its object, never a credential or an
//     environment.
//
// An id is a full id or a unique prefix of one, except for the stats of one
// object, which take full ids alone; an empty id is InvalidArgument.
// Stop and Remove of what does not exist succeed, as CRI demands.
//
// All RPCs are registered. Those that are not built answer Unimplemented, which
// comes with the generated servers that Server embeds.
//
// Read in this order: server.go, intercept.go and errors.go, then the RPCs by
// group: runtime.go, pod.go, container.go, exec.go, log.go, update.go, stats.go,
// image.go, pull.go; filter.go is what the Lists share, socket.go makes the
// listener. Exec, Attach and PortForward return URLs: streaming.go (the RPCs,
// tokens, the server), door.go and peer.go (who may connect, and how many),
// session.go (one connection), spdy.go, websocket.go, remote.go (Exec and Attach),
// portforward.go.
package cri
