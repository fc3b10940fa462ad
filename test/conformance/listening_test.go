package conformance

import (
	"fmt"
	"io"
	"net"
	"net/url"
	"strconv"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/test/expect"
)

// streamingAddress is where berthd serves streams.
func (n *node) streamingAddress(t *testing.T, id string) (host string, port int32) {
	t.Helper()
	u, err := url.Parse(n.execURL(t, id, "true"))
	if err != nil {
		t.Fatal(err)
	}
	number, err := strconv.Atoi(u.Port())
	if err != nil {
		t.Fatal(err)
	}
	return u.Host, int32(number)
}

// A pod whose host port is the streaming port would get the sessions of all others.
func TestHostPortIsTheStreamingPort(t *testing.T) {
	n := start(t, "crun")
	_, id := n.running(t, forever)
	_, port := n.streamingAddress(t, id)
	for ip, refused := range map[string]bool{"": true, "0.0.0.0": true, "127.0.0.1": true, "127.0.0.2": false} {
		config := podConfig(t, "thief")
		config.Metadata.Uid += ip
		config.PortMappings = []*runtimeapi.PortMapping{{HostPort: port, ContainerPort: 80, HostIp: ip}}
		resp, err := n.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: config})
		if refused {
			expect.Code(t, "host IP "+ip, err, codes.InvalidArgument, "port_mappings[0].host_port", fmt.Sprint(port), "streams")
		} else if err != nil {
			t.Errorf("host IP %q: %v", ip, err)
		} else {
			n.stopPod(t, resp.GetPodSandboxId())
		}
	}
	if r := n.openExec(t, "SPDY", id, outputOnly, "echo", "here").Finish(); r.Stdout != "here\n" {
		t.Errorf("a session afterwards: %+v", r)
	}
}

// Clients without tokens, however many, take little from berthd and nothing from
// pods.
func TestCrowdAtTheStreamingPort(t *testing.T) {
	const crowd, most = 1500, 200
	n := start(t, "crun")
	_, id := n.running(t, forever)
	address, _ := n.streamingAddress(t, id)
	files := n.files(t, n.berthd.Process.Pid)
	for i := range crowd {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if i%2 == 0 { // answered, and then idle
			fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
		}
	}
	eventually(t, "most of them are let go", func() bool { return n.files(t, n.berthd.Process.Pid) < files+most })
	n.stopPod(t, n.runPod(t, podConfig(t, "other")))
	for _, protocol := range []string{"SPDY", "WebSocket"} {
		if r := n.openExec(t, protocol, id, outputOnly, "echo", "here").Finish(); r.Stdout != "here\n" {
			t.Errorf("%s: %+v", protocol, r)
		}
	}
}

// A session that opens thousands of streams costs berthd few descriptors.
func TestCrowdOfForwardedConnections(t *testing.T) {
	const crowd, most = 3000, 1000
	n := start(t, "crun")
	pod, id := n.running(t, `nc -ll -p 8080 -e cat & echo ready; wait`)
	n.awaitReady(t, id)
	files := n.files(t, n.berthd.Process.Pid)
	p := n.openPorts(t, pod)
	defer p.HangUp()
	for i := range crowd {
		conn, _, err := p.Dial(8080)
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			fmt.Fprint(conn, "x")
			if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
		}
		if open := n.files(t, n.berthd.Process.Pid); open > files+most {
			t.Fatalf("berthd has %d files open after %d connections", open, i+1)
		}
	}
}
