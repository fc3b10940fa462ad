package oci

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// ErrChroot: this process's root is not its mount namespace's. A runtime started
// from here cannot make a container's root the root of its mount namespace, and
// a process that is executed in the container finds itself in the node's root.
var ErrChroot = errors.New("berthd runs in a chroot, out of which every exec would escape: give it a root by pivot_root (as systemd's RootDirectory= and container runtimes do)")

// CheckRoot returns ErrChroot in a chroot.
func CheckRoot() error {
	ns, err := os.Open("/proc/self/ns/mnt")
	if err != nil {
		return fmt.Errorf("look for a chroot: %w", err)
	}
	defer ns.Close()
	checked := make(chan error)
	go onThread(func() { checked <- checkRoot(ns) })
	return <-checked
}

// checkRoot leaves the calling thread in the root of the mount namespace ns, its
// own.
func checkRoot(ns *os.File) error {
	var before, after unix.Stat_t
	err := unix.Unshare(unix.CLONE_FS)
	if err == nil {
		err = unix.Stat("/", &before)
	}
	if err == nil {
		err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS)
	}
	if err == nil {
		err = unix.Stat("/", &after)
	}
	if err != nil {
		return fmt.Errorf("look for a chroot: %w", err)
	}
	if before.Dev != after.Dev || before.Ino != after.Ino {
		return ErrChroot
	}
	return nil
}
