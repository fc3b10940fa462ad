package sandbox

import (
	"maps"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestCanonicalSysctls(t *testing.T) {
	for name, want := range map[string]string{
		"kernel.sem":                        "kernel.sem",
		"kernel/sem":                        "kernel.sem",
		"net.ipv4.conf.eth0/100.forwarding": "net.ipv4.conf.eth0/100.forwarding",
		"net/ipv4/conf/eth0.100/forwarding": "net.ipv4.conf.eth0/100.forwarding",
		"net/ipv4/conf/eth0.1.2/forwarding": "net.ipv4.conf.eth0/1/2.forwarding",
		"net.ipv4/../kernel/core_pattern":   "net.ipv4/../kernel/core_pattern",
		"nothing":                           "nothing",
	} {
		if got := canonicalSysctl(name); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}

// A pod's processes need no privilege to listen and to ping, unless the pod or the
// operator wants it otherwise. What the pod says of its network is said again after
// the plugins.
func TestSysctlsOfAPod(t *testing.T) {
	type sysctls = map[string]string
	users := &nsOpt{UsernsOptions: usersOf(1<<20, 1<<16)}
	for _, tt := range []struct {
		name        string
		off         bool
		asked       sysctls
		options     *runtimeapi.NamespaceOption
		made, tuned sysctls
	}{
		{name: "nothing asked", made: sysctls{portStart: "0", pingGroupRange: "0 2147483647"}},
		{name: "turned off", off: true, made: sysctls{}},
		{name: "in a user namespace", options: users, made: sysctls{portStart: "0", pingGroupRange: "0 65535"}},
		{name: "asked otherwise", asked: sysctls{portStart: "1024", pingGroupRange: "1 0", "kernel.sem": "1"},
			made: sysctls{portStart: "1024", pingGroupRange: "1 0", "kernel.sem": "1"}, tuned: sysctls{portStart: "1024", pingGroupRange: "1 0"}},
		{name: "asked with slashes", asked: sysctls{"net/ipv4/ip_unprivileged_port_start": "1024"}, off: true,
			made: sysctls{portStart: "1024"}, tuned: sysctls{portStart: "1024"}},
		{name: "asked in a user namespace", options: users, asked: sysctls{portStart: "7", pingGroupRange: "1 2"},
			made: sysctls{portStart: "7", pingGroupRange: "1 2"}, tuned: sysctls{portStart: "7"}},
		{name: "the host's network", options: &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE}, made: sysctls{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, m *machine) {
				m.UnprivilegedPorts, m.UnprivilegedPing = !tt.off, !tt.off
				config := podConfig("a")
				if tt.options.GetNetwork() == runtimeapi.NamespaceMode_NODE {
					config.Hostname = ""
				}
				config.Linux = &runtimeapi.LinuxPodSandboxConfig{Sysctls: tt.asked,
					SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: tt.options}}
				if _, err := m.Run(t.Context(), RunRequest{Config: config, Handler: "test"}); err != nil {
					t.Fatal(err)
				}
				if !maps.Equal(m.world.asked.Sysctls, tt.made) || !maps.Equal(m.world.tuned, tt.tuned) {
					t.Errorf("made with %v, tuned with %v; want %v, %v", m.world.asked.Sysctls, m.world.tuned, tt.made, tt.tuned)
				}
			})
		})
	}
}
