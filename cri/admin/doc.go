// Package admin is the gRPC service that operators need beyond CRI, for its
// server (package cri) and its clients (the berth command).
//
// The service speaks CRI's own messages, so that it needs no proto file of its
// own: its description below is written by hand, in the form that
// protoc-gen-go-grpc would write for
//
//	package berth.admin.v1;
//	service Admin {
//	    // RunPodSandbox of CRI, with the built-in network allowed.
//	    rpc RunPod(runtime.v1.RunPodSandboxRequest) returns (runtime.v1.RunPodSandboxResponse);
//	}
//
// What it allows is never reachable by a pod's annotations or labels, which the
// pod's author writes: only by who can open the daemon's socket.
package admin
