// Package wire is how berthd, the keeper and the runner talk: messages of JSON
// with file descriptors over Unix sockets that keep message boundaries
// (SOCK_SEQPACKET).
//
// A message is at most MaxMessage bytes and carries at most MaxFiles files. The
// receiver owns the files it gets. Both ends may send requests; a reply carries
// the request's sequence number. A message without a sequence number is a
// notice: nobody replies.
//
// Read conn.go (one message), then peer.go (requests and replies over it).
package wire
