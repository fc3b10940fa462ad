package sandbox

import (
	"context"
	"errors"

	"k8s.io/klog/v2"
)

// OperationError is the failure of an operation on a pod or container, of which the
// log has one line: whoever passes it on does not log it again. Its text is Err's.
type OperationError struct {
	Operation string // run, create, start, …
	Pod       string // id
	Container string // id; empty: it is the pod's own
	Step      string // the effect that failed; empty: none did, or none was begun
	Err       error
}

func (e *OperationError) Error() string { return e.Err.Error() }

func (e *OperationError) Unwrap() error { return e.Err }

// stepError says which effect failed.
type stepError struct {
	step string
	err  error
}

func (e *stepError) Error() string { return e.err.Error() }

func (e *stepError) Unwrap() error { return e.err }

// reported is do, with its failure in the log, once: the operation may have no caller
// any more who would hear of it.
func (p *Pod) reported(v verb, c *Container, do func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		err := do(ctx)
		if known := (*OperationError)(nil); err == nil || errors.As(err, &known) {
			return err
		}
		failed := &OperationError{Operation: string(v), Pod: p.id, Err: err}
		meta := p.config.GetMetadata()
		fields := []any{"operation", v, "pod", p.id, "namespace", meta.GetNamespace(), "name", meta.GetName()}
		if c != nil {
			failed.Container = c.id
			fields = append(fields, "container", c.id, "containerName", c.config.GetMetadata().GetName())
		}
		if step := (*stepError)(nil); errors.As(err, &step) {
			failed.Step = step.step
			fields = append(fields, "step", step.step)
		}
		if errors.Is(err, ErrPreempted) || errors.Is(err, ErrClosed) { // somebody wanted it so
			klog.V(2).InfoS("Operation gave way", append(fields, "reason", err)...)
		} else {
			klog.ErrorS(err, "Operation failed", fields...)
		}
		return failed
	}
}
