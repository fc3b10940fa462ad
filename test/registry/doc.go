// Package registry is an OCI registry for tests: a real HTTP server on loopback
// that serves images pushed by plain calls, and can be told to misbehave.
package registry
