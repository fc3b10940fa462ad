package conformance

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/oci"
	"berth/test/expect"
)

func TestRunPodSandbox(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		config := podConfig(t, "web")
		id := n.runPod(t, config)
		if len(id) != 64 || strings.Trim(id, "0123456789abcdef") != "" {
			t.Errorf("id %q is not 64 hex digits", id)
		}
		p := n.pod(t, id)
		if p.GetState() != runtimeapi.PodSandboxState_SANDBOX_READY || p.GetNetwork().GetIp() == "" {
			t.Errorf("state %v, address %q", p.GetState(), p.GetNetwork().GetIp())
		}
		want := &runtimeapi.PodSandboxStatus{
			Id: id, Metadata: config.Metadata, CreatedAt: p.GetCreatedAt(), Network: p.GetNetwork(), Labels: config.Labels,
			Annotations: config.Annotations, RuntimeHandler: p.GetRuntimeHandler(),
			Linux: &runtimeapi.LinuxPodSandboxStatus{Namespaces: &runtimeapi.Namespace{Options: config.Linux.SecurityContext.NamespaceOptions}},
		}
		if p.GetCreatedAt() == 0 || !proto.Equal(p, want) {
			t.Errorf("status\n%v, want\n%v", p, want)
		}
		resp, err := n.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id, Verbose: true})
		if err != nil || resp.GetTimestamp() != 0 || len(resp.GetInfo()) == 0 {
			t.Errorf("verbose: timestamp %d, info %v, %v", resp.GetTimestamp(), resp.GetInfo(), err)
		}
	})
}

// A kubelet that timed out tries again with the same identity, perhaps while
// the first try runs. It must find its pod, and the next attempt is another.
func TestRetriedPodJoins(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		config := podConfig(t, "web")
		ids := make([]string, 8)
		var tries sync.WaitGroup
		for i := range ids {
			tries.Go(func() {
				resp, err := n.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: config})
				if err != nil {
					t.Error(err)
				}
				ids[i] = resp.GetPodSandboxId()
			})
		}
		tries.Wait()
		ids = append(ids, n.runPod(t, config))
		if all := slices.Compact(ids); len(all) != 1 {
			t.Errorf("one identity became %d pods: %v", len(all), all)
		}
		config.Metadata.Attempt = 1
		if next := n.runPod(t, config); next == ids[0] {
			t.Error("the next attempt is the same pod")
		}
		if pods := n.pods(t, nil); len(pods) != 2 {
			t.Errorf("listed %v", pods)
		}
	})
}

// gate is a network whose ADD waits until somebody opens the gate. Until then a
// pod is being created.
func (n *node) gate(t *testing.T, result string) (open func()) {
	t.Helper()
	waiting, opened := filepath.Join(n.netConf, "waiting"), filepath.Join(n.netConf, "open")
	plugin := fmt.Sprintf(`#!/bin/sh
case $CNI_COMMAND in
VERSION) echo '{"cniVersion":"1.0.0","supportedVersions":["1.0.0"]}' ;;
ADD) : >%q; until [ -e %q ]; do sleep 0.05; done; %s ;;
esac
`, waiting, opened, result)
	for name, text := range map[string]string{
		"gate":          plugin,
		"10-g.conflist": `{"cniVersion": "1.0.0", "name": "gated", "plugins": [{"type": "gate"}]}`,
	} {
		if err := os.WriteFile(filepath.Join(n.netConf, name), []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return func() {
		eventually(t, "the plugin is called", func() bool { _, err := os.Stat(waiting); return err == nil })
		if err := os.WriteFile(opened, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

const gateResult = `echo '{"cniVersion":"1.0.0","ips":[{"address":"10.9.9.9/24"}]}'`

// The kubelet answers a listed pod that is not READY with another attempt, so
// that the retry would never join.
func TestPodInCreationIsInvisible(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		open := n.gate(t, gateResult)
		config := podConfig(t, "slow")
		first, giveUp := context.WithCancel(t.Context())
		gone := make(chan error)
		go func() {
			_, err := n.RunPodSandbox(first, &runtimeapi.RunPodSandboxRequest{Config: config})
			gone <- err
		}()
		eventually(t, "the plugin is called", func() bool { _, err := os.Stat(filepath.Join(n.netConf, "waiting")); return err == nil })
		if pods := n.pods(t, nil); len(pods) != 0 {
			t.Errorf("listed while it is being created: %v", pods)
		}
		giveUp()
		expect.Code(t, "the first try", <-gone, codes.Canceled)
		open()
		id := n.runPod(t, config)
		if p := n.pod(t, id); p.GetNetwork().GetIp() != "10.9.9.9" {
			t.Errorf("the second try did not join: %v", p)
		}
		if pods := n.pods(t, nil); !slices.Equal(pods, []string{id}) {
			t.Errorf("listed %v, want only %s", pods, id)
		}
	})
}

// What fails leaves nothing, and says why.
func TestFailedPodLeavesNothing(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		open := n.gate(t, `echo '{"cniVersion":"1.0.0","code":100,"msg":"no address is left"}'; exit 1`)
		failed := make(chan error)
		go func() {
			_, err := n.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: podConfig(t, "doomed")})
			failed <- err
		}()
		open()
		expect.Code(t, "a pod without an address", <-failed, codes.Unknown, "no address is left")
		if pods := n.pods(t, nil); len(pods) != 0 {
			t.Errorf("listed %v", pods)
		}
		if left, _ := filepath.Glob(oci.NetNSDir + "/berth-*"); len(left) > 0 {
			t.Errorf("network namespaces are left: %v", left)
		}
		if left, _ := filepath.Glob(filepath.Join(n.run, "pods", "*")); len(left) > 0 {
			t.Errorf("records are left: %v", left)
		}
	})
}

func TestRuntimeHandlerIsChosenByTheRequest(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		for _, handler := range []string{"runc", "crun"} {
			resp, err := n.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: podConfig(t, handler), RuntimeHandler: handler})
			if err != nil {
				t.Errorf("handler %s: %v", handler, err)
				continue
			}
			if got := n.pod(t, resp.GetPodSandboxId()).GetRuntimeHandler(); got != handler {
				t.Errorf("runtime_handler %q, want %q", got, handler)
			}
		}
		_, err := n.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: podConfig(t, "x"), RuntimeHandler: "kata"})
		expect.Code(t, "an unknown handler", err, codes.InvalidArgument, "runtime_handler", "kata")
	})
}

func TestStopPodSandbox(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		pod, ctr := n.running(t, forever)
		var stops sync.WaitGroup
		for range 4 { // the kubelet calls it about twice, and StopContainer at the same time
			stops.Go(func() {
				if _, err := n.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: pod}); err != nil {
					t.Error(err)
				}
			})
		}
		stops.Wait()
		if p := n.pod(t, pod); p.GetState() != runtimeapi.PodSandboxState_SANDBOX_NOTREADY || p.GetNetwork().GetIp() != "" {
			t.Errorf("state %v, address %q", p.GetState(), p.GetNetwork().GetIp())
		}
		if c := n.container(t, ctr); c.GetState() != runtimeapi.ContainerState_CONTAINER_EXITED {
			t.Errorf("its container is %v", c.GetState())
		}
		// The garbage collector comes a minute later: a stop frees by itself.
		if _, err := os.Stat(filepath.Join(oci.NetNSDir, "berth-"+pod)); err == nil {
			t.Error("the network namespace is still pinned")
		}
		n.stopPod(t, pod)
		_, err := n.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: n.shell("late", "true")})
		expect.Code(t, "a container in a stopped pod", err, codes.FailedPrecondition)
	})
}

func TestRemovePodSandbox(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		pod, ctr := n.running(t, forever)
		log := n.container(t, ctr).GetLogPath()
		n.removePod(t, pod) // ready, with a running container
		n.removePod(t, pod)
		_, err := n.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: pod})
		expect.Code(t, "status of a removed pod", err, codes.NotFound)
		_, err = n.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: ctr})
		expect.Code(t, "status of its container", err, codes.NotFound)
		if _, err := os.Stat(log); err != nil {
			t.Errorf("the log is the kubelet's: %v", err)
		}
	})
}

func TestListPodSandboxFilters(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		a, b := n.runPod(t, podConfig(t, "a")), n.runPod(t, podConfig(t, "b"))
		n.stopPod(t, b)
		type filter = runtimeapi.PodSandboxFilter
		ready := &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY}
		uid := func(name string) map[string]string { return map[string]string{"io.kubernetes.pod.uid": "uid-" + name} }
		for _, test := range []struct {
			name   string
			filter *filter
			want   []string
		}{
			{"none", nil, []string{b, a}},
			{"id", &filter{Id: a}, []string{a}},
			{"unknown id", &filter{Id: strings.Repeat("0", 64)}, nil},
			{"state", &filter{State: ready}, []string{a}},
			{"uid", &filter{LabelSelector: uid("b")}, []string{b}},
			{"id and state", &filter{Id: b, State: ready}, nil},
			{"uid and state", &filter{LabelSelector: uid("b"), State: ready}, nil},
			{"id and another's uid", &filter{Id: a, LabelSelector: uid("b")}, nil},
		} {
			if got := n.pods(t, test.filter); !slices.Equal(got, test.want) {
				t.Errorf("%s: listed %v, want %v", test.name, got, test.want)
			}
		}
	})
}

func TestPodsNamespaces(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		n.pull(t, n.busybox)
		config := podConfig(t, "web")
		config.DnsConfig = &runtimeapi.DNSConfig{Servers: []string{"10.1.2.3"}, Searches: []string{"a.local"}, Options: []string{"ndots:5"}}
		config.Linux.Sysctls = map[string]string{"net.ipv4.ip_unprivileged_port_start": "80", "kernel.shm_rmid_forced": "1"}
		pod := n.runPod(t, config)
		ip := n.pod(t, pod).GetNetwork().GetIp()
		first := n.startContainer(t, pod, n.shell("first", "echo shared >/dev/shm/f; "+forever))
		n.awaitReady(t, first)
		for what, test := range map[string]struct{ script, want string }{
			"host name": {"hostname; cat /etc/hostname", "web\nweb"},
			"DNS":       {"cat /etc/resolv.conf", "search a.local\nnameserver 10.1.2.3\noptions ndots:5"},
			"hosts":     {"grep -c '^" + ip + "[[:space:]].*web' /etc/hosts", "1"},
			"address":   {"ip -o addr show eth0 | grep -c ' " + ip + "/'", "1"},
			"loopback":  {"ip -o addr show lo | grep -c 127.0.0.1", "1"},
			"/dev/shm":  {"cat /dev/shm/f; grep ' /dev/shm ' /proc/mounts | grep -o size=65536k", "shared\nsize=65536k"},
			"sysctls":   {"cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced", "80\n1"},
			"own pids":  {"echo $$", "1"},
			"no host":   {"ls /proc/1/root/ | grep -c '^work$'", "0"},
		} {
			name := strings.Trim(strings.ReplaceAll(strings.ToLower(what), " ", "-"), "/")
			got := n.says(t, pod, strings.ReplaceAll(name, "/", "-"), test.script, nil)
			if what == "DNS" {
				for _, line := range strings.Split(test.want, "\n") {
					if !slices.Contains(strings.Split(got, "\n"), line) {
						t.Errorf("%s: %q lacks %q", what, got, line)
					}
				}
			} else if got != test.want {
				t.Errorf("%s: %q, want %q", what, got, test.want)
			}
		}
	})
}

// setHostnameAsFQDN on a cluster without a domain gives a name that ends in a dot.
func TestHostnameThatEndsInADot(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		n.pull(t, n.busybox)
		config := podConfig(t, "web")
		config.Hostname = "web.t.ns.svc."
		want := config.Hostname + "\n" + config.Hostname
		if got := n.says(t, n.runPod(t, config), "main", "hostname; cat /etc/hostname", nil); got != want {
			t.Errorf("host name %q, want %q", got, want)
		}
	})
}

func TestPodOnTheHostsNetwork(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		n.pull(t, n.busybox)
		config := podConfig(t, "host")
		config.Hostname = ""
		config.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
		pod := n.runPod(t, config)
		if p := n.pod(t, pod); p.GetNetwork().GetIp() != "" || p.GetLinux().GetNamespaces().GetOptions().GetNetwork() != runtimeapi.NamespaceMode_NODE {
			t.Errorf("status %v", p)
		}
		want, err := os.Readlink("/proc/self/ns/net")
		if err != nil {
			t.Fatal(err)
		}
		host, err := os.Hostname()
		if err != nil {
			t.Fatal(err)
		}
		got := n.says(t, pod, "main", "readlink /proc/self/ns/net; hostname", func(c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext.NamespaceOptions = config.Linux.SecurityContext.NamespaceOptions
		})
		if got != want+"\n"+host {
			t.Errorf("network and name %q, want %q", got, want+"\n"+host)
		}
	})
}

func TestSharedPIDNamespace(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		n.pull(t, n.busybox)
		config := podConfig(t, "shared")
		config.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
		pod := n.runPod(t, config)
		share := func(c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext.NamespaceOptions = config.Linux.SecurityContext.NamespaceOptions
		}
		first := n.shell("first", "exec sleep 4711")
		share(first)
		n.startContainer(t, pod, first)
		got := n.says(t, pod, "second", "ps | grep -c '[s]leep 4711'; ls -A /proc/1/root/ 2>&1 | wc -l", share)
		if seen, _, _ := strings.Cut(got, "\n"); seen != "1" {
			t.Errorf("the other container's process is not seen: %q", got)
		}
	})
}

func TestHostPort(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		n.pull(t, n.busybox)
		port := freePort(t)
		config := podConfig(t, "web")
		config.PortMappings = []*runtimeapi.PortMapping{{HostPort: port, ContainerPort: 80}}
		pod := n.runPod(t, config)
		n.startContainer(t, pod, n.shell("httpd", "echo hello >/tmp/index.html; exec httpd -f -p 80 -h /tmp"))
		direct := &http.Client{Transport: &http.Transport{Proxy: nil, DisableKeepAlives: true}}
		for _, url := range []string{fmt.Sprintf("http://127.0.0.1:%d/", port), "http://" + n.pod(t, pod).GetNetwork().GetIp() + "/"} {
			eventually(t, url+" answers", func() bool {
				resp, err := direct.Get(url)
				if err == nil {
					resp.Body.Close()
				}
				return err == nil && resp.StatusCode == http.StatusOK
			})
		}
	})
}
