// Package expect is what tests of several packages look at in the same way: the
// codes of RPCs, the help of commands, the keeper of a run directory.
package expect
