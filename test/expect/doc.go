// Package expect is what tests of several packages look at, or make sure of, in the
// same way: the codes of RPCs, the help of commands, that there are no pods, the
// keeper of a run directory.
package expect
