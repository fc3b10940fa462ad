package oci

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"berth/oci/keeper"
	"berth/oci/keeper/runner"

	"golang.org/x/sys/unix"
)

// logLink, in a container's run directory, is a symbolic link to its log: where
// a keeper that knows nothing of the container finds it again.
const logLink = "log"

// OpenLog opens the log at path, relative to dir, for appending, and creates it
// with mode 0640 if it is not there. Neither path nor anything below dir may be
// or hold a symbolic link: whoever can write there must not choose where logs
// go.
func OpenLog(dir, path string) (*os.File, error) {
	d, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open log directory %s: %w", dir, err)
	}
	defer unix.Close(d)
	how := unix.OpenHow{
		Flags:   unix.O_RDWR | unix.O_APPEND | unix.O_CREAT | unix.O_CLOEXEC | unix.O_NOFOLLOW | unix.O_NONBLOCK,
		Mode:    0o640,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	}
	name := filepath.Join(dir, path)
	fd, err := unix.Openat2(d, path, &how)
	if err != nil {
		return nil, fmt.Errorf("open log %s: %w", name, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		unix.Close(fd)
		return nil, fmt.Errorf("open log %s: %w", name, errors.Join(err, errors.New("not a regular file")))
	}
	if err := unix.SetNonblock(fd, false); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("open log %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// reopenTimeout bounds how long a log that could not be changed may take to be
// what it was.
const reopenTimeout = 10 * time.Second

// ReopenLog makes all further output of the container go to log. When it
// returns, nothing more is written to the old one. When it fails, output goes to
// the old one as before. ErrNotRunning. The file is the caller's to close.
func (r *Runtime) ReopenLog(ctx context.Context, c Container, log *os.File) error {
	if st, err := r.state(ctx, c); err != nil || st.Gone || st.Pid == 0 {
		return ErrNotRunning
	}
	old, err := r.Keeper.File(c.ID, keeper.FileLog)
	if errors.Is(err, keeper.ErrUnknown) {
		return ErrNotRunning
	}
	if err != nil {
		return err
	}
	if old != nil {
		defer old.Close()
	}
	if err := linkLog(c.Dir, log); err != nil {
		return err
	}
	err = r.useLog(ctx, c, log)
	if err == nil || old == nil {
		return err
	}
	// Whoever holds the new log by now must not write to it: it is removed. The
	// link stays, since the old log comes back to its name.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), reopenTimeout)
	defer cancel()
	return errors.Join(err, r.useLog(ctx, c, old))
}

// useLog gives a log to the keeper and then makes the runner take it from there.
func (r *Runtime) useLog(ctx context.Context, c Container, log *os.File) error {
	if err := r.Keeper.Put(ctx, c.ID, keeper.FileLog, log); err != nil {
		return err
	}
	return r.Keeper.CallRunner(ctx, runner.OpReopen, runner.Reopen{ID: c.ID}, nil, nil)
}

// linkLog remembers where the log is: by the path that it was opened at, without
// the symbolic links that may lead there (a node may have its logs on another
// disk).
func linkLog(dir string, log *os.File) error {
	path := ""
	var err error
	control(log, func(fd int) { path, err = os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd)) })
	if err != nil {
		return err
	}
	path = strings.TrimSuffix(path, " (deleted)") // its name is made again when it is reopened
	link := filepath.Join(dir, logLink)
	if err := os.Remove(link); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return os.Symlink(path, link)
}

// reopenLog opens the log that linkLog remembered. Nothing on its path may be a
// symbolic link by now: whoever can write to a directory there could have made it
// one while nobody held the log.
func reopenLog(dir string) (*os.File, error) {
	path, err := os.Readlink(filepath.Join(dir, logLink))
	if err != nil {
		return nil, err
	}
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("open log %q: not an absolute path", path)
	}
	return OpenLog("/", path[1:])
}
