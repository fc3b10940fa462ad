package sandbox

import (
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/oci"
)

// defaultPath is the PATH of a container whose image names none.
const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// defaultTerm is the TERM of a process with a terminal whose container names none.
const defaultTerm = "TERM=xterm"

// Spec is the OCI runtime spec of container c in pod p: a pure function of a
// validated config and of facts. The oci package sets the ociVersion. The only
// error is *InvalidError: what only the image or the node can tell.
func Spec(p oci.Pod, c oci.Container, config *runtimeapi.ContainerConfig, facts Facts) (*specs.Spec, error) {
	process, err := process(config, facts)
	if err != nil {
		return nil, err
	}
	if err := checkMapped(p.Users, facts.User); err != nil {
		return nil, err
	}
	sc := config.GetLinux().GetSecurityContext()
	seccomp, err := seccompRules(sc, process.Capabilities.Bounding, facts.SeccompProfile)
	if err != nil {
		return nil, err
	}
	spec := &specs.Spec{
		Process: process,
		Root:    &specs.Root{Path: c.RootFS(), Readonly: sc.GetReadonlyRootfs()},
		Mounts:  mounts(p, c, config, facts),
		Linux: &specs.Linux{
			CgroupsPath:   c.Cgroup,
			Namespaces:    namespaces(p, c, sc.GetNamespaceOptions()),
			MaskedPaths:   sc.GetMaskedPaths(),
			ReadonlyPaths: sc.GetReadonlyPaths(),
			Seccomp:       seccomp,
			MountLabel:    facts.MountLabel,
			Resources:     allowed(config, facts),
			Devices:       slices.Concat(facts.Devices...),

			RootfsPropagation: rootPropagation(config.GetMounts()),
		},
	}
	if sc.GetPrivileged() {
		privilege(spec, facts.NodeDevices)
	}
	return spec, nil
}

func process(config *runtimeapi.ContainerConfig, facts Facts) (*specs.Process, error) {
	args, err := command(config, facts)
	if err != nil {
		return nil, err
	}
	cwd, err := workingDir(config, facts)
	if err != nil {
		return nil, err
	}
	env, err := environment(config, facts)
	if err != nil {
		return nil, err
	}
	sc := config.GetLinux().GetSecurityContext()
	caps, err := capabilities(sc, facts.Capabilities)
	if err != nil {
		return nil, err
	}
	return &specs.Process{
		Terminal:        config.GetTty(),
		User:            facts.User,
		Args:            args,
		Env:             env,
		Cwd:             cwd,
		Capabilities:    caps,
		Rlimits:         facts.Rlimits,
		NoNewPrivileges: sc.GetNoNewPrivs(),
		ApparmorProfile: facts.AppArmor,
		SelinuxLabel:    facts.ProcessLabel,
		OOMScoreAdj:     &facts.OOMScoreAdj, // always: a runtime without it inherits the daemon's
	}, nil
}

// command: the config's command replaces the image's entrypoint and arguments,
// the config's args only the latter.
func command(config *runtimeapi.ContainerConfig, facts Facts) ([]string, error) {
	args := slices.Concat(config.GetCommand(), config.GetArgs())
	if len(config.GetCommand()) == 0 {
		rest := config.GetArgs()
		if len(rest) == 0 {
			rest = facts.Image.Cmd
			if err := checkArgs("the image's Cmd", rest); err != nil {
				return nil, err
			}
		}
		if err := checkArgs("the image's Entrypoint", facts.Image.Entrypoint); err != nil {
			return nil, err
		}
		args = slices.Concat(facts.Image.Entrypoint, rest)
	}
	if len(args) == 0 || args[0] == "" {
		return nil, invalid("command", "is required: the image names none")
	}
	return args, nil
}

// workingDir refuses /proc: through the file descriptors of a process there, a
// directory may lie outside the root.
func workingDir(config *runtimeapi.ContainerConfig, facts Facts) (string, error) {
	dir := config.GetWorkingDir()
	if dir == "" {
		dir = facts.Image.WorkingDir
		if err := checkNames("the image's WorkingDir", dir); err != nil {
			return "", err
		}
	}
	dir = path.Join("/", dir)
	if beneath(dir, "/proc") {
		return "", invalid("working_dir", "%q is in /proc", dir)
	}
	return dir, nil
}

// environment in rising order of precedence; a name comes once, where it first
// came, with its last value.
func environment(config *runtimeapi.ContainerConfig, facts Facts) ([]string, error) {
	env := []string{defaultPath, "HOSTNAME=" + facts.Hostname}
	if config.GetTty() {
		env = append(env, defaultTerm)
	}
	ofImage, err := imageEnvironment(facts.Image.Env)
	if err != nil {
		return nil, err
	}
	env = append(env, ofImage...)
	for _, kv := range config.GetEnvs() {
		env = append(env, kv.GetKey()+"="+string(kv.GetValue()))
	}
	var names []string
	last := map[string]string{}
	for _, entry := range env {
		name, _, _ := strings.Cut(entry, "=")
		if _, again := last[name]; !again {
			names = append(names, name)
		}
		last[name] = entry
	}
	for i, name := range names {
		names[i] = last[name]
	}
	return names, nil
}

// imageEnvironment leaves out what is no variable, such as FOO and =bar: of the
// runtimes, one refuses it and the other passes it on.
func imageEnvironment(env []string) ([]string, error) {
	var variables []string
	for i, entry := range env {
		name, _, found := strings.Cut(entry, "=")
		if !found || name == "" {
			continue
		}
		if err := checkArg(fmt.Sprintf("the image's Env[%d]", i), entry); err != nil {
			return nil, err
		}
		variables = append(variables, entry)
	}
	return variables, nil
}

// namespaces: the pod's by path; none where it is the host's.
func namespaces(p oci.Pod, c oci.Container, options *runtimeapi.NamespaceOption) []specs.LinuxNamespace {
	list := []specs.LinuxNamespace{{Type: specs.MountNamespace}, {Type: specs.CgroupNamespace}}
	if p.Users != nil { // the path alone: with mappings beside it, runtimes would have two answers
		list = append(list, specs.LinuxNamespace{Type: specs.UserNamespace, Path: p.UserNS()})
	}
	if !p.HostNet {
		list = append(list,
			specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: p.NetNS()},
			specs.LinuxNamespace{Type: specs.UTSNamespace, Path: p.UTSNS()})
	}
	if !p.HostIPC {
		list = append(list, specs.LinuxNamespace{Type: specs.IPCNamespace, Path: p.IPCNS()})
	}
	switch {
	case options.GetPid() == runtimeapi.NamespaceMode_NODE:
	case options.GetPid() == runtimeapi.NamespaceMode_TARGET:
		list = append(list, specs.LinuxNamespace{Type: specs.PIDNamespace, Path: c.PIDNS()})
	case p.SharedPID && options.GetPid() == runtimeapi.NamespaceMode_POD:
		list = append(list, specs.LinuxNamespace{Type: specs.PIDNamespace, Path: p.PIDNS()})
	default:
		list = append(list, specs.LinuxNamespace{Type: specs.PIDNamespace})
	}
	return list
}

// mounts: the image's volumes, then the usual ones, then the config's, parents
// before children. What the config mounts itself replaces what would be there; only
// the pod's files stay above a mount at /etc, where they can.
func mounts(p oci.Pod, c oci.Container, config *runtimeapi.ContainerConfig, facts Facts) []specs.Mount {
	// The kubelet mounts a hosts file of its own; there may be no place for it either.
	own := slices.DeleteFunc(configMounts(config, facts.HostPaths), func(m specs.Mount) bool {
		return path.Dir(m.Destination) == "/etc" && slices.Contains(facts.Etc.noPlace, path.Base(m.Destination))
	})
	shm := "/dev/shm"
	if !p.HostIPC {
		shm = p.Shm()
	}
	usual := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", ttyOption}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", "ro"}},
		{Destination: "/dev/shm", Type: "bind", Source: shm, Options: []string{"rbind", "rprivate", "nosuid", "noexec", "nodev", "rw"}},
	}
	files := fileMounts(p, config, facts)
	last := slices.DeleteFunc(slices.Clone(files), func(m specs.Mount) bool {
		return !slices.Contains(facts.Etc.over, path.Base(m.Destination)) || slices.ContainsFunc(own, func(o specs.Mount) bool { return o.Destination == m.Destination })
	})
	usual = append(usual, files...)
	usual = slices.DeleteFunc(usual, func(m specs.Mount) bool {
		return slices.ContainsFunc(own, func(o specs.Mount) bool { return beneath(m.Destination, o.Destination) })
	})
	mapMounts(p.Users, usual)
	mapMounts(p.Users, last)
	return slices.Concat(volumeMounts(c, facts.Volumes), usual, own, last)
}

// fileMounts are those of the pod's files, which all its containers share. A
// container with a read-only root only reads them.
func fileMounts(p oci.Pod, config *runtimeapi.ContainerConfig, facts Facts) []specs.Mount {
	dir, access := p.Files(), "rw"
	if facts.OldFiles {
		dir = p.Dir
	}
	if facts.OldFiles || config.GetLinux().GetSecurityContext().GetReadonlyRootfs() {
		access = "ro"
	}
	var files []specs.Mount
	for _, name := range podFileNames {
		files = append(files, specs.Mount{
			Destination: "/etc/" + name, Type: "bind", Source: filepath.Join(dir, name),
			Options: []string{"bind", "rprivate", "nosuid", "noexec", "nodev", access},
		})
	}
	return files
}

// beneath says whether dir is parent or lies in it; both are clean.
func beneath(dir, parent string) bool {
	return dir == parent || strings.HasPrefix(dir, strings.TrimSuffix(parent, "/")+"/")
}
