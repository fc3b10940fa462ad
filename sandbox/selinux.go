package sandbox

import (
	"fmt"
	"regexp"
	"sync"

	"github.com/opencontainers/selinux/go-selinux"
	"github.com/opencontainers/selinux/go-selinux/label"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"
)

// selinuxWord is what the parts of an SELinux context are made of; the level
// alone may hold colons and commas.
var (
	selinuxWord  = regexp.MustCompile(`^[A-Za-z0-9_.-]*$`)
	selinuxLevel = regexp.MustCompile(`^[A-Za-z0-9_.:,-]+$`)
)

// checkSELinux judges a context where the kernel has SELinux. Elsewhere it has no
// effect, whatever it says: charts send one to every node.
//
// A context without a level is refused: it would need categories that no other
// container of the node has, and Berth allocates none.
func (n node) checkSELinux(field string, o *runtimeapi.SELinuxOption) error {
	switch {
	case !n.selinux || emptySELinux(o):
		return nil
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

func emptySELinux(o *runtimeapi.SELinuxOption) bool {
	return o.GetUser()+o.GetRole()+o.GetType()+o.GetLevel() == ""
}

// ignored lists the fields of a security context that have no effect on this node,
// each with the reason.
func (n node) ignored(o *runtimeapi.SELinuxOption) []string {
	if n.selinux || emptySELinux(o) {
		return nil
	}
	return []string{securityField + "selinux_options: " + noSELinux}
}

const noSELinux = "SELinux is not enabled in this kernel"

// sayNoSELinux is for the log, which hears of it once and not from each container.
var sayNoSELinux sync.Once

// selinuxLabels are the contexts of the process and of the files that are made
// for it; "" for a container that asks for none, and where there is no SELinux.
func (n node) selinuxLabels(sc *runtimeapi.LinuxContainerSecurityContext) (process, mount string, err error) {
	o := sc.GetSelinuxOptions()
	if emptySELinux(o) || sc.GetPrivileged() {
		return "", "", nil
	}
	if !n.selinux {
		sayNoSELinux.Do(func() {
			klog.InfoS("A container asks for SELinux options; this node accepts them without effect", "reason", noSELinux)
		})
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
