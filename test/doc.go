// Package test holds what is checked across packages: the layering of the
// rooms and the reasons of the dependencies.
//
// Its folders are test suites over the built programs, and leak, which every
// package's TestMain runs under. Nothing but tests imports them.
package test
