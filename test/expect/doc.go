// Package expect is what tests of several packages look at, or make sure of, in the
// same way: what RPCs answer, the help of commands, that there are no pods, the
// mounts of the machine, the keeper of a run directory.
package expect
