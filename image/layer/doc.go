// Package layer turns a compressed layer into its tar and proves both.
//
// One stream, two workers: one reads the source, hashes the compressed bytes
// and inflates them; the other hashes and writes the tar. Nothing but the tar
// is stored, and nothing is to be trusted before Inflate has returned nil.
//
// Read in this order: inflate.go (the source), window.go (what zstd may take), sink.go
// (the tar).
package layer
