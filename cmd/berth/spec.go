package main

import (
	"cmp"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	// runLabel marks the pods that `berth run` made. Its value means nothing.
	runLabel = "berth/run"
	// portsAnnotation keeps the published ports of a pod for `berth ps`: CRI
	// does not tell them. Nothing else reads it.
	portsAnnotation = "berth/ports"

	// stdioAnnotation tells `berth attach` what a container was run with: "i"
	// for -i, "t" for -t, "it" for both. CRI does not. Nothing else reads it.
	stdioAnnotation = "berth/stdio"

	podNamespace = "berth"
	logName      = "container.log" // in the pod's log directory
)

// validName is what can be a host name, a directory's name and a pod's.
var validName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

// What no container may see or change of /proc and /sys. CRI has no default: an
// empty list means that nothing is masked.
var (
	maskedPaths = []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats",
		"/sys/devices/virtual/powercap", "/sys/firmware",
	}
	readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

// runOptions is the command line of `berth run`.
type runOptions struct {
	name        string
	hostname    string
	handler     string
	network     string // "builtin" or "host"
	ports       []string
	env         []string
	volumes     []string
	detach      bool
	interactive bool
	tty         bool
	remove      bool
	image       string
	args        []string
}

// podRequest turns o into the request for its pod. uid makes the pod another
// one than an earlier pod of the same name.
func (o *runOptions) podRequest(uid, logDir string) (*runtimeapi.RunPodSandboxRequest, error) {
	if !validName.MatchString(o.name) {
		return nil, fmt.Errorf("--name %q: use up to 63 lower-case letters, digits and '-'", o.name)
	}
	c := &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: o.name, Namespace: podNamespace, Uid: uid},
		Hostname:     o.hostname,
		LogDirectory: logDir,
		Labels:       map[string]string{runLabel: "true"},
		Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
		}},
	}
	switch o.network {
	case "builtin":
		if c.Hostname == "" {
			c.Hostname = o.name
		}
	case "host":
		if len(o.ports) > 0 || o.hostname != "" {
			return nil, fmt.Errorf("--network host: a pod on the host's network has its ports and name, without -p and --hostname")
		}
		c.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
	default:
		return nil, fmt.Errorf("--network %q: use builtin or host", o.network)
	}
	var shown []string
	for _, text := range o.ports {
		p, err := parsePort(text)
		if err != nil {
			return nil, err
		}
		c.PortMappings = append(c.PortMappings, p)
		shown = append(shown, showPort(p))
	}
	if len(shown) > 0 {
		c.Annotations = map[string]string{portsAnnotation: strings.Join(shown, ", ")}
	}
	return &runtimeapi.RunPodSandboxRequest{Config: c, RuntimeHandler: o.handler}, nil
}

// containerConfig turns o into the container of its pod. Arguments replace the
// image's command and keep its entry point, as everywhere.
func (o *runOptions) containerConfig() (*runtimeapi.ContainerConfig, error) {
	c := &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: o.name},
		Image:    &runtimeapi.ImageSpec{Image: o.image, UserSpecifiedImage: o.image},
		Args:     o.args,
		LogPath:  logName,
		Stdin:    o.interactive,
		// What is piped in has an end, which the container must see; a terminal
		// may come back to it.
		StdinOnce: o.interactive && !o.tty && !o.detach,
		Tty:       o.tty,
		Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
			MaskedPaths:      maskedPaths,
			ReadonlyPaths:    readonlyPaths,
			Seccomp:          &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault},
		}},
	}
	if o.network == "host" {
		c.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
	}
	for _, text := range o.env {
		key, value, given := strings.Cut(text, "=")
		if key == "" {
			return nil, fmt.Errorf("-e %q: write KEY=VALUE", text)
		}
		if !given {
			if value, given = os.LookupEnv(key); !given {
				continue // as docker does: a variable that is not set here is not set there
			}
		}
		c.Envs = append(c.Envs, &runtimeapi.KeyValue{Key: key, Value: []byte(value)})
	}
	if o.tty && !slices.ContainsFunc(c.Envs, func(e *runtimeapi.KeyValue) bool { return e.Key == "TERM" }) {
		c.Envs = append(c.Envs, &runtimeapi.KeyValue{Key: "TERM", Value: []byte(cmp.Or(os.Getenv("TERM"), "xterm"))})
	}
	if stdio := o.stdio(); stdio != "" {
		c.Annotations = map[string]string{stdioAnnotation: stdio}
	}
	for _, text := range o.volumes {
		m, err := parseVolume(text)
		if err != nil {
			return nil, err
		}
		c.Mounts = append(c.Mounts, m)
	}
	return c, nil
}

// stdio is the value of stdioAnnotation.
func (o *runOptions) stdio() string {
	var text string
	if o.interactive {
		text += "i"
	}
	if o.tty {
		text += "t"
	}
	return text
}

// parsePort reads [IP:]HOST:CONTAINER[/tcp|udp|sctp].
func parsePort(text string) (*runtimeapi.PortMapping, error) {
	wrong := fmt.Errorf("-p %q: write HOST:CONTAINER, for example 8080:80 or 53:53/udp", text)
	ports, protocol, given := strings.Cut(text, "/")
	if !given {
		protocol = "tcp"
	}
	number, ok := runtimeapi.Protocol_value[strings.ToUpper(protocol)]
	host, container, two := cutLast(ports)
	if !ok || !two {
		return nil, wrong
	}
	p := &runtimeapi.PortMapping{Protocol: runtimeapi.Protocol(number)}
	if ip, port, three := cutLast(host); three {
		addr, err := netip.ParseAddr(strings.Trim(ip, "[]"))
		if err != nil {
			return nil, wrong
		}
		p.HostIp, host = addr.String(), port
	}
	hostPort, err1 := strconv.ParseUint(host, 10, 16)
	containerPort, err2 := strconv.ParseUint(container, 10, 16)
	if err1 != nil || err2 != nil || hostPort == 0 || containerPort == 0 {
		return nil, wrong
	}
	p.HostPort, p.ContainerPort = int32(hostPort), int32(containerPort)
	return p, nil
}

// cutLast cuts text at its last colon.
func cutLast(text string) (before, after string, found bool) {
	i := strings.LastIndexByte(text, ':')
	if i < 0 {
		return "", text, false
	}
	return text[:i], text[i+1:], true
}

func showPort(p *runtimeapi.PortMapping) string {
	text := fmt.Sprintf("%d:%d/%s", p.GetHostPort(), p.GetContainerPort(), strings.ToLower(p.GetProtocol().String()))
	switch {
	case p.GetHostIp() == "":
		return text
	case strings.Contains(p.GetHostIp(), ":"):
		return "[" + p.GetHostIp() + "]:" + text
	default:
		return p.GetHostIp() + ":" + text
	}
}

// parseVolume reads HOST:CONTAINER[:ro|:rw]. HOST may be relative to the
// working directory if it begins with a dot.
func parseVolume(text string) (*runtimeapi.Mount, error) {
	parts := strings.Split(text, ":")
	if len(parts) < 2 || len(parts) > 3 || !filepath.IsAbs(parts[1]) {
		return nil, fmt.Errorf("-v %q: write HOST:CONTAINER[:ro], for example /srv/data:/data", text)
	}
	m := &runtimeapi.Mount{HostPath: parts[0], ContainerPath: parts[1]}
	if len(parts) == 3 {
		if parts[2] != "ro" && parts[2] != "rw" {
			return nil, fmt.Errorf("-v %q: the last part is ro or rw", text)
		}
		m.Readonly = parts[2] == "ro"
	}
	if strings.HasPrefix(m.HostPath, ".") {
		abs, err := filepath.Abs(m.HostPath)
		if err != nil {
			return nil, fmt.Errorf("-v %q: %w", text, err)
		}
		m.HostPath = abs
	}
	if !filepath.IsAbs(m.HostPath) {
		return nil, fmt.Errorf("-v %q: there are no named volumes, write a path like /srv/%s or ./%s", text, parts[0], parts[0])
	}
	return m, nil
}
