package sandbox

import (
	"errors"
	"time"

	"k8s.io/klog/v2"

	"berth/oci"
)

// Reasons of an exit, as the kubelet shows them.
const (
	reasonCompleted  = "Completed"
	reasonError      = "Error"
	reasonOOMKilled  = "OOMKilled"  // memory ran out, and the kernel killed it or one of its processes
	reasonStartError = "StartError" // there was no process
	reasonUnknown    = "Unknown"    // nobody saw how it ended
)

// Exit codes that stand for what has none.
const (
	codeStartError = 128
	codeUnknown    = 255
)

// watch waits for the end of a running container on a goroutine of its own and
// records it.
func (c *Container) watch() {
	b := c.pod.pods.background
	b.run(func() {
		for failures := 1; ; failures++ {
			exit, err := c.pod.runtime().Wait(b.ctx, c.oci())
			if b.ctx.Err() != nil {
				return // it runs on; the next daemon waits
			}
			if err == nil || errors.Is(err, oci.ErrExitUnknown) {
				err = c.recordExit(exit, err)
			}
			if err == nil {
				return
			}
			klog.ErrorS(err, "Waiting for a container's exit; trying again", "container", c.id)
			if !b.pause(backoff(failures)) {
				return
			}
		}
	})
}

// recordExit records how the container ended; unknown is oci.ErrExitUnknown or
// nil.
func (c *Container) recordExit(exit oci.Exit, unknown error) error {
	return c.change(containerExit, func(rec *containerRecord) {
		rec.Pid = 0
		rec.Undo = nil // its limits have ended with it
		rec.FinishedAt = exit.At
		if rec.FinishedAt.IsZero() {
			rec.FinishedAt = time.Now()
		}
		if rec.StartedAt.After(rec.FinishedAt) { // it ended before its start was heard of
			rec.StartedAt = rec.FinishedAt
		}
		rec.ExitCode = exit.Code
		if exit.Refused != "" {
			rec.Message = exit.Refused
		}
		if unknown != nil {
			rec.ExitCode, rec.Message = codeUnknown, unknown.Error()
		}
		switch {
		case exit.OOMKilled: // whatever its own code: a child's death is often the reason for it
			rec.Reason = reasonOOMKilled
		case unknown != nil:
			rec.Reason = reasonUnknown
		case exit.Code == 0:
			rec.Reason = reasonCompleted
		default:
			rec.Reason = reasonError
		}
	})
}
