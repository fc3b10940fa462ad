package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// cgroupParent is where the pods of both sides are.
const cgroupParent = "/bench/pods"

// What a container runs: it says that it is ready and ends at once when it is asked
// to. web serves the files of /srv at port 80.
const (
	rest = `trap 'exit 0' TERM; echo ready; sleep 2147483647 & wait`
	web  = `trap 'exit 0' TERM; httpd -f -p 80 -h /srv & echo ready; wait`
)

// A pod has one container.
type pod struct {
	config *runtimeapi.PodSandboxConfig
	main   *runtimeapi.ContainerConfig

	id, container string // of those that exist
}

// newPod is a pod as the kubelet describes it, with the next number. Its container
// runs a script of a shell.
func (s *side) newPod(image, script string, network runtimeapi.NamespaceMode) (*pod, error) {
	s.pods++
	name := fmt.Sprintf("web-%d", s.pods)
	uid := fmt.Sprintf("00000000-0000-0000-0000-%012d", s.pods)
	namespaces := &runtimeapi.NamespaceOption{Network: network, Pid: runtimeapi.NamespaceMode_CONTAINER}
	seccomp := &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
	labels := map[string]string{
		"io.kubernetes.pod.name": name, "io.kubernetes.pod.namespace": "default", "io.kubernetes.pod.uid": uid,
		"app": "web", "pod-template-hash": "5d4f8c7b9",
	}
	p := &pod{
		config: &runtimeapi.PodSandboxConfig{
			Metadata:     &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "default", Uid: uid},
			LogDirectory: filepath.Join(s.dir, "logs", uid),
			DnsConfig: &runtimeapi.DNSConfig{
				Servers:  []string{"10.96.0.10"},
				Searches: []string{"default.svc.cluster.local", "svc.cluster.local", "cluster.local"},
				Options:  []string{"ndots:5"},
			},
			Labels:      labels,
			Annotations: map[string]string{"kubernetes.io/config.seen": "2026-01-01T00:00:00Z", "kubernetes.io/config.source": "api"},
			Linux: &runtimeapi.LinuxPodSandboxConfig{
				CgroupParent:    cgroupParent,
				SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: namespaces, Seccomp: seccomp},
			},
		},
		main: &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: "main"},
			Image:    &runtimeapi.ImageSpec{Image: image},
			Command:  []string{"sh", "-c", script},
			Envs: []*runtimeapi.KeyValue{
				{Key: "KUBERNETES_SERVICE_HOST", Value: []byte("10.96.0.1")},
				{Key: "KUBERNETES_SERVICE_PORT", Value: []byte("443")},
				{Key: "POD_NAME", Value: []byte(name)},
			},
			Labels:  labels,
			LogPath: "main.log",
			Linux: &runtimeapi.LinuxContainerConfig{
				Resources: &runtimeapi.LinuxContainerResources{
					CpuShares: 102, CpuPeriod: 100_000, CpuQuota: 100_000, MemoryLimitInBytes: 64 << 20, OomScoreAdj: 1000,
				},
				SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
					NamespaceOptions: namespaces, Seccomp: seccomp, NoNewPrivs: true,
					MaskedPaths:   []string{"/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/scsi", "/sys/firmware"},
					ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
				},
			},
		},
	}
	if network == runtimeapi.NamespaceMode_POD {
		p.config.Hostname = name
	}
	// What the kubelet mounts into every container.
	for target, text := range map[string]string{"/etc/hosts": "127.0.0.1 localhost\n", "/dev/termination-log": ""} {
		source := filepath.Join(s.dir, "volumes", uid, filepath.Base(target))
		if err := write(source, text); err != nil {
			return nil, err
		}
		p.mount(source, target)
	}
	return p, os.MkdirAll(p.config.LogDirectory, 0o755)
}

func (p *pod) mount(source, target string) {
	p.main.Mounts = append(p.main.Mounts, &runtimeapi.Mount{HostPath: source, ContainerPath: target})
}

func (p *pod) log() string { return filepath.Join(p.config.LogDirectory, p.main.LogPath) }

// A verb is one call that a pod goes through.
type verb struct {
	name string
	do   func(ctx context.Context, s *side, p *pod) error
}

var up = []verb{
	{"RunPodSandbox", func(ctx context.Context, s *side, p *pod) error {
		resp, err := s.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: p.config})
		p.id = resp.GetPodSandboxId()
		return err
	}},
	{"CreateContainer", func(ctx context.Context, s *side, p *pod) error {
		resp, err := s.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: p.main, SandboxConfig: p.config})
		p.container = resp.GetContainerId()
		return err
	}},
	{"StartContainer", func(ctx context.Context, s *side, p *pod) error {
		_, err := s.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: p.container})
		return err
	}},
}

var execSync = verb{"ExecSync", func(ctx context.Context, s *side, p *pod) error {
	resp, err := s.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: p.container, Cmd: []string{"true"}, Timeout: int64(patience / time.Second)})
	if err == nil && resp.GetExitCode() != 0 {
		err = fmt.Errorf("true ends with %d", resp.GetExitCode())
	}
	return err
}}

var down = []verb{
	{"StopContainer", func(ctx context.Context, s *side, p *pod) error {
		_, err := s.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: p.container, Timeout: int64(patience / time.Second)})
		return err
	}},
	{"RemoveContainer", func(ctx context.Context, s *side, p *pod) error {
		_, err := s.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: p.container})
		return err
	}},
	{"StopPodSandbox", func(ctx context.Context, s *side, p *pod) error {
		_, err := s.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.id})
		return err
	}},
	{"RemovePodSandbox", func(ctx context.Context, s *side, p *pod) error {
		_, err := s.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.id})
		return err
	}},
}

// times are those of the calls of one pod, by their names.
type times map[string]time.Duration

// through has a pod go through verbs and adds up their times under the name of sum.
func (s *side) through(ctx context.Context, p *pod, t times, sum string, verbs ...verb) error {
	for _, v := range verbs {
		begin := time.Now()
		if err := v.do(ctx, s, p); err != nil {
			return fmt.Errorf("%s of %s: %w", v.name, s.name, err)
		}
		t[v.name] = time.Since(begin)
		t[sum] += t[v.name]
	}
	return nil
}

// cycle is a pod from its start to its removal, with what is done between. "up" and
// "down" are sums of calls, and "cycle" is the sum of both: without what is between,
// and without the wait until the container can be stopped.
func (s *side) cycle(ctx context.Context, p *pod, between ...verb) (times, error) {
	t := times{}
	if err := s.through(ctx, p, t, "up", up...); err != nil {
		return nil, err
	}
	if err := s.through(ctx, p, t, "between", between...); err != nil {
		return nil, err
	}
	if err := p.ready(ctx); err != nil {
		return nil, err
	}
	if err := s.through(ctx, p, t, "down", down...); err != nil {
		return nil, err
	}
	t["cycle"] = t["up"] + t["down"]
	return t, nil
}

// calls are the names of a cycle's times, in the order of the table.
func calls() []string {
	var all []string
	for _, v := range slices.Concat(up, []verb{execSync}, down) {
		all = append(all, v.name)
	}
	return append(all, "up", "down", "cycle")
}

// ready waits until the container has said so: before that its first process may
// not hear the signal to stop.
func (p *pod) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	again := time.NewTicker(time.Millisecond)
	defer again.Stop()
	for {
		text, err := os.ReadFile(p.log())
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if bytes.Contains(text, []byte(" ready\n")) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait until container %s is ready: %w", p.container, ctx.Err())
		case <-again.C:
		}
	}
}
