package sandbox

import (
	"fmt"
	"slices"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Where the security context lies, of a pod and of a container, and parts of it.
const (
	securityField     = "linux.security_context."
	capabilitiesField = securityField + "capabilities."
	namespacesField   = securityField + "namespace_options."
	usersField        = namespacesField + "userns_options"
)

// checkSecurity says whether this node can make a process what sc asks for.
//
// Accepted without an effect, as CRI says, in a privileged container: what would
// confine it again (capabilities to add and drop, selinux_options, seccomp,
// apparmor, masked_paths, readonly_paths).
func (p *Pod) checkSecurity(sc *runtimeapi.LinuxContainerSecurityContext) error {
	const at = securityField
	switch {
	case sc.GetPrivileged() && !p.config.GetLinux().GetSecurityContext().GetPrivileged():
		return invalid(at+"privileged", "needs a pod that has %sprivileged as well", at)
	case sc.GetRunAsUser() != nil && sc.GetRunAsUsername() != "":
		return invalid(at+"run_as_username", "is given together with run_as_user; one of them must go")
	case sc.GetRunAsGroup() != nil && sc.GetRunAsUser() == nil && sc.GetRunAsUsername() == "":
		return invalid(at+"run_as_group", "needs run_as_user or run_as_username")
	}
	return firstError(
		func() error {
			return checkIDs(sc.GetRunAsUser(), sc.GetRunAsGroup(), sc.GetSupplementalGroups(), sc.GetSupplementalGroupsPolicy())
		},
		func() error {
			if name := sc.GetRunAsUsername(); strings.ContainsAny(name, ":\n\x00") {
				return invalid(at+"run_as_username", "%q is not the name of a user", name)
			}
			return nil
		},
		func() error { return checkCapabilities(sc.GetCapabilities()) },
		func() error {
			if sc.GetPrivileged() {
				return nil
			}
			return p.pods.node.checkSELinux(at+"selinux_options", sc.GetSelinuxOptions())
		},
		func() error { return p.pods.node.checkSeccomp(sc) },
		func() error { return p.pods.node.checkAppArmor(sc) },
		func() error { return checkPaths(at+"masked_paths", sc.GetMaskedPaths()) },
		func() error { return checkPaths(at+"readonly_paths", sc.GetReadonlyPaths()) },
	)
}

// checkPodSecurity judges the context of the sandbox itself by the same rules,
// also where nothing comes of it: a client that sends nonsense is told so. That
// the kernel filters no system calls is not held against a pod, which has no
// process: the kubelet asks for the default profile of each.
func (n node) checkPodSecurity(sc *runtimeapi.LinuxSandboxSecurityContext) error {
	const at = securityField
	if sc.GetRunAsGroup() != nil && sc.GetRunAsUser() == nil {
		return invalid(at+"run_as_group", "needs run_as_user")
	}
	n.seccomp = true
	like := &runtimeapi.LinuxContainerSecurityContext{
		Privileged:         sc.GetPrivileged(),
		Seccomp:            sc.GetSeccomp(),
		SeccompProfilePath: sc.GetSeccompProfilePath(),
		Apparmor:           sc.GetApparmor(),
	}
	return firstError(
		func() error {
			return checkIDs(sc.GetRunAsUser(), sc.GetRunAsGroup(), sc.GetSupplementalGroups(), sc.GetSupplementalGroupsPolicy())
		},
		func() error { return n.checkSELinux(at+"selinux_options", sc.GetSelinuxOptions()) },
		func() error { return n.checkSeccomp(like) },
		func() error { return n.checkAppArmor(like) },
	)
}

func checkIDs(user, group *runtimeapi.Int64Value, groups []int64, policy runtimeapi.SupplementalGroupsPolicy) error {
	const at = securityField
	if err := checkID(at+"run_as_user", user.GetValue()); err != nil {
		return err
	}
	if err := checkID(at+"run_as_group", group.GetValue()); err != nil {
		return err
	}
	if len(groups) > maxGroups {
		return invalid(at+"supplemental_groups", "has %d groups, at most %d are possible", len(groups), maxGroups)
	}
	for i, gid := range groups {
		if err := checkID(fmt.Sprintf("%ssupplemental_groups[%d]", at, i), gid); err != nil {
			return err
		}
	}
	if policy != runtimeapi.SupplementalGroupsPolicy_Merge && policy != runtimeapi.SupplementalGroupsPolicy_Strict {
		return invalid(at+"supplemental_groups_policy", "%d is not Merge or Strict", policy)
	}
	return nil
}

func checkID(field string, id int64) error {
	if id < 0 || id > maxID {
		return invalid(field, "%d is not between 0 and %d", id, maxID)
	}
	return nil
}

func checkCapabilities(c *runtimeapi.Capability) error {
	const at = capabilitiesField
	dropped := capabilityList(c.GetDropCapabilities())
	for _, name := range capabilityList(c.GetAddAmbientCapabilities()) {
		if name != allCapabilities && slices.Contains(dropped, name) {
			return invalid(at+"add_ambient_capabilities", "%s is dropped as well", name)
		}
	}
	return firstError(
		func() error { return checkCapabilityNames(at+"add_capabilities", c.GetAddCapabilities()) },
		func() error { return checkCapabilityNames(at+"drop_capabilities", c.GetDropCapabilities()) },
		func() error {
			return checkCapabilityNames(at+"add_ambient_capabilities", c.GetAddAmbientCapabilities())
		},
	)
}

func checkCapabilityNames(field string, texts []string) error {
	for _, text := range texts {
		if name := capabilityName(text); name != allCapabilities && !slices.Contains(capabilityNames, name) {
			return invalid(field, "%.100q is no capability", text)
		}
	}
	return nil
}

// checkPaths: none of them may be the root, which holds the process's program.
func checkPaths(field string, paths []string) error {
	for i, p := range paths {
		field := fmt.Sprintf("%s[%d]", field, i)
		if err := checkPath(field, p); err != nil {
			return err
		}
		if p == "/" {
			return invalid(field, "is the root of the container; readonly_rootfs makes that read-only")
		}
	}
	return nil
}

// checkTarget: a container whose processes this one may see has to be of the
// same pod, and to have processes.
func (p *Pod) checkTarget(field, id string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch target := p.containers[id]; {
	case target == nil || target.rec.CreatedAt.IsZero():
		return invalid(field, "%.100q is no container of this pod", id)
	case target.rec.State != containerRunning:
		return invalid(field, "container %s is %s, not running", id, target.rec.State)
	}
	return nil
}

// A confinement is the profile that a container is to have, never nil.
type confinement struct {
	*runtimeapi.SecurityProfile
	field    string // that asks for it
	refField string // that names the profile of the node
}

// profileOf reads a profile, or the deprecated text that stands for one where
// there is none. Without either the container is not confined.
func profileOf(name string, p *runtimeapi.SecurityProfile, deprecated, text string) (confinement, error) {
	if p != nil {
		return confinement{p, securityField + name, securityField + name + ".localhost_ref"}, nil
	}
	c := confinement{&runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}, securityField + deprecated, securityField + deprecated}
	ref, local := strings.CutPrefix(text, "localhost/")
	switch {
	case text == "" || text == "unconfined":
	case text == "runtime/default" || text == "docker/default":
		c.ProfileType = runtimeapi.SecurityProfile_RuntimeDefault
	case local:
		c.ProfileType, c.LocalhostRef = runtimeapi.SecurityProfile_Localhost, ref
	default:
		return c, invalid(c.field, "%.200q is not runtime/default, unconfined or localhost/…", text)
	}
	return c, nil
}

// check judges the parts of a profile by one another.
func (c confinement) check() error {
	switch c.GetProfileType() {
	case runtimeapi.SecurityProfile_RuntimeDefault, runtimeapi.SecurityProfile_Unconfined:
		if c.GetLocalhostRef() != "" {
			return invalid(c.refField, "is for profile_type Localhost alone")
		}
	case runtimeapi.SecurityProfile_Localhost:
		if c.GetLocalhostRef() == "" {
			return invalid(c.refField, "is required for profile_type Localhost")
		}
	default:
		return invalid(c.field+".profile_type", "%d is not RuntimeDefault, Unconfined or Localhost", c.GetProfileType())
	}
	return nil
}
