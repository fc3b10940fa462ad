// Package admin is the gRPC service that operators need beyond CRI, for its
// server (package cri) and its clients (the berth command).
//
// The service speaks CRI's own messages and those of protobuf itself, so that it
// needs no proto file of its own: its description is written by hand, in the form
// that protoc-gen-go-grpc would write for
//
//	package berth.admin.v1;
//	service Admin {
//	    // RunPodSandbox of CRI, with the built-in network allowed.
//	    rpc RunPod(runtime.v1.RunPodSandboxRequest) returns (runtime.v1.RunPodSandboxResponse);
//	    // PullImage of CRI, telling how far it is: each message is the JSON of
//	    // a PullProgress.
//	    rpc Pull(runtime.v1.PullImageRequest) returns (stream google.protobuf.StringValue);
//	}
//
// What it allows is never reachable by a pod's annotations or labels, which the
// pod's author writes: only by who can open the daemon's socket.
//
// Read in this order: admin.go, pull.go.
package admin
