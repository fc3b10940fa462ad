//go:build node

package node

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const hello = "Hello from a pod.\n"

// page is what a web server answers, "" while it does not.
func page(address string) string {
	resp, err := client.Get("http://" + address + "/")
	if err != nil {
		return ""
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		return ""
	}
	return string(text)
}

func testWebServer(t *testing.T, n *node) {
	p := n.pod(t, "web")
	for _, address := range []string{p.Status.PodIP, nodeAddress + ":8088"} {
		if text := page(address); text != hello {
			t.Errorf("http://%s/ says %q", address, text)
		}
	}
	if err := os.WriteFile(filepath.Join(n.shared("web"), "from-host"), []byte("host"), 0o644); err != nil {
		t.Fatal(err)
	}
	runIn(t, "web", "server", "cp /etc/hostname /scratch/shared")
	for _, see := range []struct{ container, command, want string }{
		{"server", "hostname", "www"},
		{"server", "env", "POD_IP=" + p.Status.PodIP},
		{"server", "env", fmt.Sprint("LIMIT=", 64<<20)},
		{"server", "cat /about/labels", `app="web"`},
		{"server", "cat /host/from-host", "host"},
		{"server", "df -m /fast", "8"},
		{"server", "grep www /etc/hosts", p.Status.PodIP},
		{"peer", "cat /scratch/shared", "www"},
		{"peer", "ip -4 address show eth0", p.Status.PodIP},
	} {
		if said := runIn(t, "web", see.container, see.command); !strings.Contains(said, see.want) {
			t.Errorf("%s in %s says %q, want %q", see.command, see.container, said, see.want)
		}
	}
}

// testHostNetwork finds the pod at the node's address. A standalone kubelet tells
// nobody that this is the pod's too.
func testHostNetwork(t *testing.T, n *node) {
	if text := page(nodeAddress + ":8089"); text != hello {
		t.Errorf("it says %q", text)
	}
	name, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	if said := runIn(t, "host", "server", "hostname"); said != name+"\n" {
		t.Errorf("its host name is %q, not %q", said, name)
	}
}
