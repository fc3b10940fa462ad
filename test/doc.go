// Package test holds what is checked across packages: the layering of the
// rooms, the reasons of the dependencies, the ways that docs/architecture.md
// describes, and every timer.
//
// Its folders are test suites over the built programs (conformance, node), leak,
// which every package's TestMain runs under, and what several suites need: expect,
// registry, streams. Nothing but tests imports them.
package test
