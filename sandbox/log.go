package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"berth/oci"
)

// logPath is where on the host the log is; "" without one.
func (c *Container) logPath() string {
	if c.config.GetLogPath() == "" {
		return ""
	}
	return filepath.Join(c.pod.config.GetLogDirectory(), c.config.GetLogPath())
}

// openLog opens the container's log, nil if it has none.
func (c *Container) openLog() (*os.File, error) {
	if c.config.GetLogPath() == "" {
		return nil, nil
	}
	return oci.OpenLog(c.pod.config.GetLogDirectory(), c.config.GetLogPath())
}

// ReopenLog makes the running container's further output go to its log path
// anew, after the old file was renamed (CRI ReopenContainerLog). On an error no
// new file is left.
//
// Errors: ErrNotRunning; ErrIllegal for a container without a log.
func (c *Container) ReopenLog(ctx context.Context) error {
	if err := c.reopenLog(ctx); err != nil {
		return fmt.Errorf("reopen log of container %s: %w", c.id, err)
	}
	return nil
}

func (c *Container) reopenLog(ctx context.Context) (err error) {
	if c.record().State != containerRunning {
		return ErrNotRunning
	}
	if c.config.GetLogPath() == "" {
		return fmt.Errorf("%w: it has no log", ErrIllegal)
	}
	dir, err := os.OpenRoot(c.pod.config.GetLogDirectory())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	_, missing := dir.Lstat(c.config.GetLogPath())
	log, err := c.openLog()
	if err != nil {
		return err
	}
	err = errors.Join(c.pod.runtime().ReopenLog(ctx, c.oci(), log), log.Close())
	if err != nil && errors.Is(missing, fs.ErrNotExist) {
		err = errors.Join(err, dir.Remove(c.config.GetLogPath()))
	}
	return err
}
