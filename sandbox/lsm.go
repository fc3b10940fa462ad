package sandbox

import (
	"fmt"
	"os"
	"regexp"
	"strings"

	"github.com/opencontainers/selinux/go-selinux"
	"github.com/opencontainers/selinux/go-selinux/label"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// defaultAppArmor is the profile that RuntimeDefault means. Whoever sets up the
// node loads it: Berth runs no parser of profiles.
const defaultAppArmor = "berth-default"

// appArmorProfiles is where the kernel lists the profiles that are loaded, a
// line each: the name and, in parentheses, the mode.
const appArmorProfiles = "/sys/kernel/security/apparmor/profiles"

func hasAppArmor() bool {
	text, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	return err == nil && strings.TrimSpace(string(text)) == "Y"
}

func appArmorOf(sc *runtimeapi.LinuxContainerSecurityContext) (confinement, error) {
	return confine("apparmor", sc.GetApparmor(), "apparmor_profile", sc.GetApparmorProfile())
}

// checkAppArmor: without AppArmor, RuntimeDefault is what the kernel does
// anyhow; the kubelet sends it to every node.
func (n node) checkAppArmor(sc *runtimeapi.LinuxContainerSecurityContext) error {
	c, err := appArmorOf(sc)
	if err != nil {
		return err
	}
	if err := c.check(); err != nil {
		return err
	}
	if c.GetProfileType() == runtimeapi.SecurityProfile_Localhost && !n.appArmor {
		return unsupported(c.field, ErrNoAppArmor)
	}
	return nil
}

// appArmorProfile is the loaded profile that a validated sc asks for; "": none.
func (n node) appArmorProfile(sc *runtimeapi.LinuxContainerSecurityContext) (string, error) {
	c, err := appArmorOf(sc)
	if err != nil || !n.appArmor || sc.GetPrivileged() || c.GetProfileType() == runtimeapi.SecurityProfile_Unconfined {
		return "", err
	}
	name, field := c.GetLocalhostRef(), c.refField
	if c.GetProfileType() == runtimeapi.SecurityProfile_RuntimeDefault {
		name, field = defaultAppArmor, c.field
	}
	list, err := os.ReadFile(appArmorProfiles)
	if err != nil {
		return "", fmt.Errorf("list AppArmor profiles: %w", err)
	}
	if !profileLoaded(string(list), name) {
		return "", invalid(field, "AppArmor profile %q is not loaded", name)
	}
	return name, nil
}

func profileLoaded(list, name string) bool {
	for line := range strings.Lines(list) {
		if at := strings.LastIndex(line, " ("); at >= 0 && line[:at] == name {
			return true
		}
	}
	return false
}

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
