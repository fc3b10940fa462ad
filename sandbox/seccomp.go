package sandbox

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"syscall"

	"github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maxSeccompProfile bounds the file of a profile, in bytes.
const maxSeccompProfile = 1 << 20

func hasSeccomp() bool {
	_, err := os.Stat("/proc/sys/kernel/seccomp/actions_avail")
	return err == nil
}

func seccompOf(sc *runtimeapi.LinuxContainerSecurityContext) (confinement, error) {
	return profileOf("seccomp", sc.GetSeccomp(), "seccomp_profile_path", sc.GetSeccompProfilePath())
}

func (n node) checkSeccomp(sc *runtimeapi.LinuxContainerSecurityContext) error {
	c, err := seccompOf(sc)
	if err != nil {
		return err
	}
	if err := c.check(); err != nil {
		return err
	}
	if c.GetProfileType() == runtimeapi.SecurityProfile_Localhost {
		if err := checkPath(c.refField, c.GetLocalhostRef()); err != nil {
			return err
		}
	}
	if c.GetProfileType() != runtimeapi.SecurityProfile_Unconfined && !sc.GetPrivileged() && !n.seccomp {
		return unsupported(c.field, ErrNoSeccomp)
	}
	return nil
}

// readSeccomp reads the profile of the node that a validated sc names; nil if it
// names none.
func readSeccomp(sc *runtimeapi.LinuxContainerSecurityContext) ([]byte, error) {
	c, err := seccompOf(sc)
	if err != nil || c.GetProfileType() != runtimeapi.SecurityProfile_Localhost || sc.GetPrivileged() {
		return nil, err
	}
	text, err := readProfile(c.GetLocalhostRef())
	if err != nil {
		return nil, invalid(c.refField, "%v", err)
	}
	return text, nil
}

// readProfile reads a regular file. Opening it must not wait for what a FIFO of
// that name has at its other end.
func readProfile(path string) (text []byte, err error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no regular file", path)
	}
	text, err = io.ReadAll(io.LimitReader(f, maxSeccompProfile+1))
	if err == nil && len(text) > maxSeccompProfile {
		err = fmt.Errorf("%s is larger than %d bytes", path, maxSeccompProfile)
	}
	return text, err
}

// seccompRules are the system calls that a process with these capabilities may
// make; nil: all. Of the machine they depend on its architecture and the version
// of its kernel.
func seccompRules(sc *runtimeapi.LinuxContainerSecurityContext, capabilities []string, local []byte) (*specs.LinuxSeccomp, error) {
	c, err := seccompOf(sc)
	if err != nil || sc.GetPrivileged() {
		return nil, err
	}
	held := &specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: capabilities}}}
	var rules *specs.LinuxSeccomp
	switch c.GetProfileType() {
	case runtimeapi.SecurityProfile_RuntimeDefault:
		rules, err = defaultSeccomp(held)
	case runtimeapi.SecurityProfile_Localhost:
		if err = checkProfileText(local); err == nil {
			rules, err = seccomp.LoadProfile(string(local), held)
		}
	}
	if err != nil {
		return nil, invalid(c.refField, "%.200q: %v", c.GetLocalhostRef(), err)
	}
	return rules, nil
}

var seccompActions = []specs.LinuxSeccompAction{
	specs.ActAllow, specs.ActErrno, specs.ActKill, specs.ActKillProcess, specs.ActKillThread, specs.ActLog, specs.ActNotify, specs.ActTrace, specs.ActTrap,
}

// checkProfileText refuses what a reader of profiles passes over: fields that it
// does not know, so that a rule written with a slip is no rule, and a profile
// without a default action, which it takes for none at all.
func checkProfileText(text []byte) error {
	var profile seccomp.Seccomp
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&profile); err != nil {
		return fmt.Errorf("parse seccomp profile: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("parse seccomp profile: something follows the object")
	}
	if !slices.Contains(seccompActions, profile.DefaultAction) {
		return fmt.Errorf("defaultAction %.100q is unknown", profile.DefaultAction)
	}
	for i, call := range profile.Syscalls {
		switch {
		case call == nil || len(call.Names) == 0:
			return fmt.Errorf("syscalls[%d] names no system call", i)
		case !slices.Contains(seccompActions, call.Action):
			return fmt.Errorf("syscalls[%d].action %.100q is unknown", i, call.Action)
		}
	}
	return nil
}
