package sandbox

import (
	"fmt"
	"regexp"

	"github.com/opencontainers/selinux/go-selinux"
	"github.com/opencontainers/selinux/go-selinux/label"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// selinuxWord is what the parts of an SELinux context are made of; the level
// alone may hold colons and commas.
var (
	selinuxWord  = regexp.MustCompile(`^[A-Za-z0-9_.-]*$`)
	selinuxLevel = regexp.MustCompile(`^[A-Za-z0-9_.:,-]+$`)
)

// checkSELinux: a context without a level would need categories that no other
// container of the node has, and Berth hands out none.
func (n node) checkSELinux(field string, o *runtimeapi.SELinuxOption) error {
	switch {
	case o.GetUser()+o.GetRole()+o.GetType()+o.GetLevel() == "":
		return nil
	case !n.selinux:
		return unsupported(field, ErrNoSELinux)
	case !selinuxLevel.MatchString(o.GetLevel()):
		return invalid(field+".level", "%.100q is no level", o.GetLevel())
	}
	for _, part := range []struct{ name, text string }{{"user", o.GetUser()}, {"role", o.GetRole()}, {"type", o.GetType()}} {
		if !selinuxWord.MatchString(part.text) {
			return invalid(field+"."+part.name, "%.100q cannot be part of a context", part.text)
		}
	}
	return nil
}

// selinuxLabels are the contexts of the process and of the files that are made
// for it; "" for a container that asks for none.
func selinuxLabels(sc *runtimeapi.LinuxContainerSecurityContext) (process, mount string, err error) {
	o := sc.GetSelinuxOptions()
	if o.GetLevel() == "" || sc.GetPrivileged() {
		return "", "", nil
	}
	options := []string{"level:" + o.GetLevel()}
	for _, part := range []struct{ name, text string }{{"user", o.GetUser()}, {"role", o.GetRole()}, {"type", o.GetType()}} {
		if part.text != "" {
			options = append(options, part.name+":"+part.text)
		}
	}
	process, mount, err = label.InitLabels(options)
	if err != nil {
		return "", "", fmt.Errorf("make SELinux labels: %w", err)
	}
	return process, mount, nil
}

// relabel gives the sources of mounts that ask for it the SELinux context of the
// container's files. A container without one, as all are on a node without
// SELinux, has nothing to give: the kubelet asks all the same.
func relabel(mounts []*runtimeapi.Mount, hostPaths []string, context string) error {
	if context == "" {
		return nil
	}
	for i, m := range mounts {
		if !m.GetSelinuxRelabel() || m.GetImage() != nil { // nobody changes an image
			continue
		}
		if err := label.Relabel(hostPaths[i], context, false); err != nil {
			return invalid(fmt.Sprintf("mounts[%d].selinux_relabel", i), "%v", err)
		}
	}
	return nil
}

func hasSELinux() bool { return selinux.GetEnabled() }
