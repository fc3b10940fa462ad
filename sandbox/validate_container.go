package sandbox

import (
	"bytes"
	"fmt"
	"path"
	"path/filepath"
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
	if err := checkArgs("command", c.GetCommand()); err != nil {
		return err
	}
	if err := checkArgs("args", c.GetArgs()); err != nil {
		return err
	}
	if dir := c.GetWorkingDir(); dir != "" {
		if !path.IsAbs(dir) {
			return invalid("working_dir", "%.100q is not an absolute path", dir)
		}
		if err := checkNames("working_dir", dir); err != nil {
			return err
		}
	}
	if err := checkEnvironment(c.GetEnvs()); err != nil {
		return err
	}
	if s := c.GetStopSignal(); s != runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT && number(s) == 0 {
		return invalid("stop_signal", "%d is unknown", s)
	}
	return nil
}

// maxArg is the kernel's bound of one argument or variable of a process, in bytes
// (execve(2): MAX_ARG_STRLEN, which counts a NUL).
const maxArg = 128<<10 - 1

// checkArgs accepts what can be arguments of a process.
func checkArgs(field string, args []string) error {
	for i, arg := range args {
		if err := checkArg(fmt.Sprintf("%s[%d]", field, i), arg); err != nil {
			return err
		}
	}
	return nil
}

func checkArg(field, arg string) error {
	switch {
	case strings.ContainsRune(arg, 0):
		return invalid(field, "cannot hold a NUL")
	case len(arg) > maxArg:
		return invalid(field, "has %d bytes, at most %d are possible", len(arg), maxArg)
	}
	return nil
}

func checkEnvironment(envs []*runtimeapi.KeyValue) error {
	for i, kv := range envs {
		field := fmt.Sprintf("envs[%d]", i)
		switch key, value := kv.GetKey(), kv.GetValue(); {
		case key == "" || len(key) > maxArg || strings.ContainsAny(key, "=\x00"):
			return invalid(field+".key", "%.100q is not the name of a variable", key)
		case bytes.ContainsRune(value, 0) || !utf8.Valid(value):
			return invalid(field+".value", "is not UTF-8 without NUL, which is all that an OCI runtime spec can hold")
		case len(key)+len("=")+len(value) > maxArg:
			return invalid(field+".value", "has %d bytes; at most %d are possible with the key", len(value), maxArg)
		}
	}
	return nil
}

func (p *Pod) checkLog(name string) error {
	dir := p.config.GetLogDirectory()
	switch {
	case name == "":
		return nil
	case dir == "":
		return invalid("log_path", "the pod has no log_directory")
	case !filepath.IsLocal(name) || path.Clean(name) != name || name == ".":
		return invalid("log_path", "%.100q is not a relative path without . and ..", name)
	}
	return checkNames("log_path", path.Join(dir, name))
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
	const at = namespacesField
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
