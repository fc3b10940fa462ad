package main

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// machine says in a line what a run was made on.
func machine() (string, error) {
	cpu, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "", err
	}
	model := "CPU"
	for line := range bytes.Lines(cpu) {
		if name, value, _ := strings.Cut(string(line), ":"); strings.TrimSpace(name) == "model name" {
			model = strings.TrimSpace(value)
			break
		}
	}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return "", err
	}
	var kernel unix.Utsname
	if err := unix.Uname(&kernel); err != nil {
		return "", err
	}
	var cgroups unix.Statfs_t
	if err := unix.Statfs("/sys/fs/cgroup", &cgroups); err != nil {
		return "", err
	}
	version := "v1"
	if cgroups.Type == unix.CGROUP2_SUPER_MAGIC {
		version = "v2"
	}
	release, _, _ := bytes.Cut(kernel.Release[:], []byte{0})
	return fmt.Sprintf("%d × %s, %d GiB, Linux %s, cgroup %s",
		runtime.NumCPU(), model, info.Totalram*uint64(info.Unit)>>30, release, version), nil
}
