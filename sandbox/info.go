package sandbox

import (
	"encoding/json"
	"net/netip"
	"time"

	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"k8s.io/klog/v2"
)

// podInfo is what crictl inspectp shows beside the status. Tools read .pid.
type podInfo struct {
	Pid        int             `json:"pid"` // of the oldest running container; 0 without one
	Runtime    string          `json:"runtime"`
	Cgroup     string          `json:"cgroup"`
	Namespaces podNamespaces   `json:"namespaces"`
	Network    networkInfo     `json:"network"`
	Containers []containerName `json:"containers"`        // newest first
	Ignored    []string        `json:"ignored,omitempty"` // fields of the config without effect on this node, with the reason
	Steps      []stepInfo      `json:"steps"`             // of the creation
}

// podNamespaces are the paths of the pod's own ones; empty: the host's.
type podNamespaces struct {
	Net  string `json:"net,omitempty"`
	IPC  string `json:"ipc,omitempty"`
	UTS  string `json:"uts,omitempty"`
	PID  string `json:"pid,omitempty"` // of a pod whose containers share one
	User string `json:"user,omitempty"`
}

type networkInfo struct {
	IPs           []netip.Addr `json:"ips"`
	HostInterface string       `json:"hostInterface,omitempty"`
}

type containerName struct {
	ID   string `json:"id"`
	Name string `json:"name"`
	Pid  int    `json:"pid"` // 0: it does not run
}

// containerInfo is what crictl inspect shows beside the status.
type containerInfo struct {
	Pid         int             `json:"pid"` // 0: it does not run
	SandboxID   string          `json:"sandboxID"`
	Runtime     string          `json:"runtime"`
	Cgroup      string          `json:"cgroup"`
	RootFS      string          `json:"rootfs"`            // where its root is mounted while it runs
	Layers      []digest.Digest `json:"layers"`            // of the image, by diffID, the lowest first
	Steps       []stepInfo      `json:"steps"`             // of the creation and the start
	Ignored     []string        `json:"ignored,omitempty"` // as in podInfo
	RuntimeSpec *specs.Spec     `json:"runtimeSpec"`
}

type stepInfo struct {
	Name string `json:"name"`
	Took string `json:"took"`
}

// Info is what a verbose PodSandboxStatus adds: one key, "info", with JSON.
func (p *Pod) Info() map[string]string {
	rec, k := p.record(), p.oci()
	i := podInfo{
		Runtime: p.pods.handlerName(rec.Handler), Cgroup: k.Cgroup, Steps: stepsInfo(rec.Steps),
		Network: networkInfo{rec.Attachment.IPs, rec.Attachment.Interface},
		Ignored: p.pods.node.ignored(p.config.GetLinux().GetSecurityContext().GetSelinuxOptions()),
	}
	if !k.HostNet {
		i.Namespaces.Net, i.Namespaces.UTS = k.NetNS(), k.UTSNS()
	}
	if !k.HostIPC {
		i.Namespaces.IPC = k.IPCNS()
	}
	if k.Users != nil {
		i.Namespaces.User = k.UserNS()
	}
	if k.SharedPID {
		i.Namespaces.PID = k.PIDNS()
	}
	for _, c := range p.Containers() {
		pid := c.record().Pid
		if pid != 0 {
			i.Pid = pid
		}
		i.Containers = append(i.Containers, containerName{c.id, c.config.GetMetadata().GetName(), pid})
	}
	return info(i)
}

// Info is what a verbose ContainerStatus adds: one key, "info", with JSON. The
// runtime spec in it has the container's environment: it is for whoever may talk
// to the runtime, not for a log.
func (c *Container) Info() map[string]string {
	rec := c.record()
	spec, err := c.readSpec()
	if err != nil { // it is being removed
		klog.V(2).InfoS("No runtime spec to show", "container", c.id, "reason", err)
	}
	return info(containerInfo{
		Pid:         rec.Pid,
		SandboxID:   c.pod.id,
		Runtime:     c.pod.pods.handlerName(c.pod.record().Handler),
		Cgroup:      c.oci().Cgroup,
		RootFS:      c.oci().RootFS(),
		Layers:      rec.Image.Layers,
		Steps:       stepsInfo(rec.Steps),
		Ignored:     c.pod.pods.node.ignored(c.config.GetLinux().GetSecurityContext().GetSelinuxOptions()),
		RuntimeSpec: spec,
	})
}

func stepsInfo(steps []Step) []stepInfo {
	list := make([]stepInfo, 0, len(steps))
	for _, s := range steps {
		list = append(list, stepInfo{s.Name, s.Took.Round(time.Microsecond).String()})
	}
	return list
}

func info(v any) map[string]string {
	data, err := json.Marshal(v)
	if err != nil { // plain structs of strings and numbers: it cannot
		panic(err)
	}
	return map[string]string{"info": string(data)}
}
