package oci

import (
	"errors"
	"os"
	"runtime"
	"testing"

	"berth/test/leak"

	"golang.org/x/sys/unix"
)

// Guards against execs that land in the node's root.
func TestChrootIsNoticed(t *testing.T) {
	leak.NeedRoot(t)
	if err := CheckRoot(); err != nil {
		t.Errorf("without a chroot: %v", err)
	}
	ns, err := os.Open("/proc/self/ns/mnt")
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	dir := t.TempDir()
	checked := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := errors.Join(unix.Unshare(unix.CLONE_FS), unix.Chroot(dir)); err != nil {
			checked <- err
			return
		}
		checked <- checkRoot(ns)
	}()
	if err := <-checked; !errors.Is(err, ErrChroot) {
		t.Errorf("in a chroot: %v, want ErrChroot", err)
	}
}
