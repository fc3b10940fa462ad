package sandbox

import (
	"bytes"
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// validateContainer accepts what is honoured and refuses everything else by
// name. What only the image or the host can tell is found later, by gather and
// Spec, before the container counts as created.
func (p *Pod) validateContainer(c *runtimeapi.ContainerConfig) error {
	if c == nil {
		return invalid("config", "is required")
	}
	return firstError(
		func() error { return checkSize(c) },
		func() error { return checkName("metadata.name", c.GetMetadata().GetName()) },
		func() error {
			if c.GetImage().GetImage() == "" {
				return invalid("image.image", "is required")
			}
			return nil
		},
		func() error { return checkProcess(c) },
		func() error { return p.checkMounts(c.GetMounts()) },
		func() error { return p.checkMountMappings(c.GetMounts()) },
		func() error { return checkDevices(c.GetDevices()) },
		func() error { return p.checkLog(c.GetLogPath()) },
		func() error { return checkUnsupported(c) },
		func() error { return p.checkNamespaces(c.GetLinux().GetSecurityContext().GetNamespaceOptions()) },
		func() error { return p.checkSecurity(c.GetLinux().GetSecurityContext()) },
		func() error { return p.checkResources(c.GetLinux().GetResources()) },
	)
}

func checkProcess(c *runtimeapi.ContainerConfig) error {
	for _, arg := range slices.Concat(c.GetCommand(), c.GetArgs(), []string{c.GetWorkingDir()}) {
		if strings.ContainsRune(arg, 0) {
			return invalid("command", "command, args and working_dir cannot hold a NUL")
		}
	}
	if dir := c.GetWorkingDir(); dir != "" && !path.IsAbs(dir) {
		return invalid("working_dir", "%q is not an absolute path", dir)
	}
	for i, kv := range c.GetEnvs() {
		if kv.GetKey() == "" || strings.ContainsAny(kv.GetKey(), "=\x00") {
			return invalid(fmt.Sprintf("envs[%d].key", i), "%q is not the name of a variable", kv.GetKey())
		}
		if bytes.ContainsRune(kv.GetValue(), 0) || !utf8.Valid(kv.GetValue()) {
			return invalid(fmt.Sprintf("envs[%d].value", i), "is not UTF-8 without NUL, which is all that an OCI runtime spec can hold")
		}
	}
	if s := c.GetStopSignal(); s != runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT && number(s) == 0 {
		return invalid("stop_signal", "%d is unknown", s)
	}
	return nil
}

func (p *Pod) checkLog(name string) error {
	switch {
	case name == "":
		return nil
	case p.config.GetLogDirectory() == "":
		return invalid("log_path", "the pod has no log_directory")
	case !filepath.IsLocal(name) || path.Clean(name) != name || name == "." || strings.ContainsRune(name, 0):
		return invalid("log_path", "%q is not a relative path without . and ..", name)
	}
	return nil
}

func checkUnsupported(c *runtimeapi.ContainerConfig) error {
	switch {
	case len(c.GetCDIDevices()) > 0:
		return invalid("CDI_devices", "are not supported")
	case c.GetWindows() != nil:
		return invalid("windows", "this is Linux")
	}
	return nil
}

// checkNamespaces: a container lives in its pod's namespaces. Only its pid
// namespace may be its own where the pod shares one, or another container's.
func (p *Pod) checkNamespaces(ns *runtimeapi.NamespaceOption) error {
	if ns == nil {
		return nil
	}
	const at = "linux.security_context.namespace_options."
	pod := p.namespaces()
	switch {
	case ns.GetNetwork() != pod.GetNetwork():
		return invalid(at+"network", "%s is not the pod's %s", ns.GetNetwork(), pod.GetNetwork())
	case ns.GetIpc() != pod.GetIpc():
		return invalid(at+"ipc", "%s is not the pod's %s", ns.GetIpc(), pod.GetIpc())
	case ns.GetPid() == runtimeapi.NamespaceMode_TARGET:
		if err := p.checkTarget(at+"target_id", ns.GetTargetId()); err != nil {
			return err
		}
	case ns.GetPid() != pod.GetPid() && ns.GetPid() != runtimeapi.NamespaceMode_CONTAINER:
		return invalid(at+"pid", "%s is not the pod's %s", ns.GetPid(), pod.GetPid())
	case ns.GetTargetId() != "":
		return invalid(at+"target_id", "is for pid TARGET alone")
	}
	return p.checkUsers(ns)
}
