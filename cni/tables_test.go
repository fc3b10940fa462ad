package cni

import (
	"os/exec"
	"slices"
	"strings"
	"testing"

	"berth/test/leak"
)

// The last pod of the built-in network takes the plugins' tables with it, but
// never a rule of somebody else.
func TestTablesOfOthers(t *testing.T) {
	const begin = "add table ip cni_hostport; add chain ip cni_hostport hostports; add chain ip cni_hostport "
	tests := map[string]struct {
		script string
		table  string // that must stay
		rule   string // in it
	}{
		"host port":     {begin + "x; delete chain ip cni_hostport x; add rule ip cni_hostport hostports tcp dport 99 accept", "ip cni_hostport", "tcp dport 99 accept"},
		"unknown chain": {begin + "x; add rule ip cni_hostport x tcp dport 98 accept", "ip cni_hostport", "tcp dport 98 accept"},
		"masquerading":  {"add table inet cni_plugins_masquerade; add chain inet cni_plugins_masquerade masq_checks; add rule inet cni_plugins_masquerade masq_checks tcp dport 97 accept", "inet cni_plugins_masquerade", "tcp dport 97 accept"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			n := newNetwork(t)
			nft(t, strings.Split(test.script, "; ")...)
			defer nft(t, "delete table "+test.table)
			pod := newPod(t, "a", PortMapping{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"})
			add(t, n, pod)
			before := nft(t, "list table "+test.table)
			if !strings.Contains(before, pod.ID) {
				t.Errorf("the pod has no rule in %s:\n%s", test.table, before)
			}
			del(t, n, pod)
			if after := nft(t, "list table "+test.table); !strings.Contains(after, test.rule) || !strings.Contains(after, "hook") {
				t.Errorf("table is\n%s\nwas\n%s", after, before)
			}
			tables := strings.Split(strings.TrimSpace(nft(t, "list tables")), "\n")
			if want := []string{"table " + test.table}; !slices.Equal(tables, want) {
				t.Errorf("tables left: %q, want %q", tables, want)
			}
		})
	}
}

func nft(t *testing.T, commands ...string) string {
	t.Helper()
	var all strings.Builder
	for _, c := range commands {
		out, err := exec.Command(leak.NeedTool(t, "nft"), c).CombinedOutput()
		if err != nil {
			t.Fatalf("nft %s: %v: %s", c, err, out)
		}
		all.Write(out)
	}
	return all.String()
}
