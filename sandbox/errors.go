package sandbox

import (
	"errors"
	"fmt"

	"berth/oci"
)

// Errors that callers tell apart.
var (
	// ErrNotFound: no such pod or container.
	ErrNotFound = errors.New("not found")
	// ErrNotReady: the pod is stopped, so that no container can be made or
	// started in it.
	ErrNotReady = errors.New("pod is not ready")
	// ErrNotRunning: the container has no live process.
	ErrNotRunning = oci.ErrNotRunning
	// ErrInterrupted: one of Berth's processes has died under an exec, whose end
	// nobody has seen.
	ErrInterrupted = oci.ErrInterrupted
	// ErrNotSupported: this kernel or OCI runtime lacks what was asked for.
	ErrNotSupported = oci.ErrNotSupported
	// ErrIllegal: the state of the pod or container does not allow it.
	ErrIllegal = errors.New("not allowed in this state")
	// ErrPreempted: a Stop or Remove came while it was being created or started.
	ErrPreempted = errors.New("pre-empted by a stop or remove")
	// ErrListFull: with one more the list of all could not be received any more.
	ErrListFull = errors.New("too many pods and containers")
	// ErrImageMount: an image cannot be mounted in a container.
	ErrImageMount = errors.New("image cannot be mounted")
	// ErrNoProgram: the program of a container or of an exec is not in its root.
	ErrNoProgram = errors.New("no such program")
	// ErrClosed: the daemon is going away; the next one finishes what began.
	ErrClosed = errors.New("the daemon is stopping")

	// What this kernel lacks, behind the InvalidError that refuses it.
	ErrNoSeccomp  = errors.New("this kernel cannot filter system calls (CONFIG_SECCOMP_FILTER)")
	ErrNoAppArmor = errors.New("AppArmor is not enabled in this kernel")
)

// InvalidError says that a field of a config cannot be honoured.
type InvalidError struct {
	Field  string // proto path within the config, e.g. "linux.security_context.privileged"
	Reason string // what is wrong with it, and what to do
	Err    error  // what callers tell apart, or nil
}

func (e *InvalidError) Error() string { return e.Field + ": " + e.Reason }

func (e *InvalidError) Unwrap() error { return e.Err }

func invalid(field, format string, args ...any) error {
	return &InvalidError{Field: field, Reason: fmt.Sprintf(format, args...)}
}

// unsupported refuses a field for what this machine lacks.
func unsupported(field string, err error) error {
	return &InvalidError{Field: field, Reason: err.Error() + "; leave it out", Err: err}
}
