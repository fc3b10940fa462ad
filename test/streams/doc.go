// Package streams is a client of streaming sessions for tests: remote commands
// over SPDY (version 4) and WebSocket (version 5), and forwarded ports. It speaks
// as kubectl and the kubelet do, and can hang up at any point.
//
// Read in this order: session.go (what a test holds), spdy.go, websocket.go,
// ports.go.
package streams
