//go:build node

package node

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strings"
	"testing"
)

// Channels of an exec (remotecommand.k8s.io), and of the first port of a
// port-forward.
const (
	chanStdin = iota
	chanStdout
	chanStderr
	chanStatus
	chanResize
	chanClose = 255 // v5: its data is the channel that is closed

	chanPortData  = 0
	chanPortError = 1
)

// executed is what an exec did. Status is the Kubernetes status of its end.
type executed struct {
	stdout, stderr string
	status         struct {
		Status, Reason, Message string
		Details                 struct {
			Causes []struct{ Reason, Message string }
		}
	}
}

// execute runs a command in a container through the kubelet with stdin, which ends
// with what is given; v5 only can end it.
func execute(t *testing.T, protocol, pod, container string, stdin []byte, tty bool, command ...string) (e executed) {
	t.Helper()
	query := url.Values{"command": command, "input": {"1"}, "output": {"1"}}
	if tty {
		query.Set("tty", "1")
	} else {
		query.Set("error", "1")
	}
	s, err := dial(t, fmt.Sprintf("/exec/default/%s-node/%s?%s", pod, container, query.Encode()), protocol)
	if err != nil {
		t.Fatalf("exec: %v", err)
	}
	sent := make(chan error, 1)
	go func() {
		var errs []error
		if tty {
			errs = append(errs, s.send(chanResize, []byte(`{"Width":123,"Height":45}`)))
		}
		for chunk := range slices.Chunk(stdin, 32<<10) {
			errs = append(errs, s.send(chanStdin, chunk))
		}
		if protocol == "v5.channel.k8s.io" {
			errs = append(errs, s.send(chanClose, []byte{chanStdin}))
		}
		sent <- errors.Join(errs...)
	}()
	for {
		channel, data, err := s.receive()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("exec: %v", err)
		}
		switch channel {
		case chanStdout:
			e.stdout += string(data)
		case chanStderr:
			e.stderr += string(data)
		case chanStatus:
			if err := json.Unmarshal(data, &e.status); err != nil {
				t.Fatalf("status %q: %v", data, err)
			}
		}
	}
	if err := <-sent; err != nil {
		t.Errorf("exec: send: %v", err)
	}
	return e
}

// says is what a script prints in a container.
func says(t *testing.T, pod, container, script string) string {
	t.Helper()
	e := execute(t, "v5.channel.k8s.io", pod, container, nil, false, "sh", "-c", script)
	return e.stdout + e.stderr
}

func testStreaming(t *testing.T, n *node) {
	// v4 goes through to the runtime as it is; v5 reaches the runtime as SPDY.
	for _, protocol := range []string{"v4.channel.k8s.io", "v5.channel.k8s.io"} {
		t.Run(protocol, func(t *testing.T) {
			e := execute(t, protocol, "web", "server", nil, false, "sh", "-c", "echo out; echo err >&2; exit 7")
			if e.stdout != "out\n" || e.stderr != "err\n" {
				t.Errorf("it printed %q and %q", e.stdout, e.stderr)
			}
			if causes := e.status.Details.Causes; e.status.Reason != "NonZeroExitCode" || len(causes) != 1 || causes[0].Message != "7" {
				t.Errorf("its status: %+v", e.status)
			}
			e = execute(t, protocol, "web", "server", []byte("one\ntwo\n"), false, "head", "-n", "2")
			if e.stdout != "one\ntwo\n" || e.status.Status != "Success" {
				t.Errorf("it echoed %q, %+v", e.stdout, e.status)
			}
			e = execute(t, protocol, "web", "server", []byte("until stty size | grep 123; do sleep 0.1; done; exit\n"), true, "sh")
			if !strings.Contains(e.stdout, "45 123") || e.status.Status != "Success" {
				t.Errorf("on a terminal: %q, %+v", e.stdout, e.status)
			}
		})
	}
	t.Run("stdin ends", func(t *testing.T) {
		much := bytes.Repeat([]byte("0123456789abcdef"), 1<<16) // 1 MiB
		e := execute(t, "v5.channel.k8s.io", "web", "server", much, false, "cat")
		if e.stdout != string(much) || e.status.Status != "Success" {
			t.Errorf("%d bytes came back, %+v", len(e.stdout), e.status)
		}
	})
	t.Run("attach", func(t *testing.T) {
		for _, protocol := range []string{"v4.channel.k8s.io", "v5.channel.k8s.io"} {
			if said := attached(t, protocol, "talk", "main", "hello\n", "you say hello\n"); said != "you say hello\n" {
				t.Errorf("with %s it says %q", protocol, said)
			}
		}
	})
	for pod, port := range map[string]int{"web": 80, "host": 8089} {
		t.Run("port of "+pod, func(t *testing.T) {
			if text := forwarded(t, pod, port, "GET / HTTP/1.0\r\n\r\n"); !strings.HasSuffix(text, hello) {
				t.Errorf("it says %q", text)
			}
		})
	}
}

// attached tells a container something through the kubelet, and is what the
// container says until it has said what is wanted.
func attached(t *testing.T, protocol, pod, container, tell, want string) (said string) {
	t.Helper()
	s, err := dial(t, fmt.Sprintf("/attach/default/%s-node/%s?input=1&output=1&error=1", pod, container), protocol)
	if err != nil {
		t.Fatalf("attach: %v", err)
	}
	if err := s.send(chanStdin, []byte(tell)); err != nil {
		t.Fatal(err)
	}
	for !strings.Contains(said, want) {
		channel, data, err := s.receive()
		if err != nil {
			t.Fatalf("attach: %v after %q", err, said)
		}
		if channel == chanStdout {
			said += string(data)
		}
	}
	return said
}

// forwarded is what a pod answers on one of its ports, through the kubelet.
func forwarded(t *testing.T, pod string, port int, request string) string {
	t.Helper()
	s, err := dial(t, fmt.Sprintf("/portForward/default/%s-node?port=%d", pod, port), "v4.channel.k8s.io")
	if err != nil {
		t.Fatalf("port-forward: %v", err)
	}
	if err := s.send(chanPortData, []byte(request)); err != nil {
		t.Fatal(err)
	}
	said := map[byte][]byte{}
	for {
		channel, data, err := s.receive()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("port-forward: %v", err)
		}
		said[channel] = append(said[channel], data...)
	}
	// Both channels begin with the number of the port.
	if len(said[chanPortError]) != 2 || len(said[chanPortData]) < 2 {
		t.Fatalf("port-forward: %q", said)
	}
	return string(said[chanPortData][2:])
}
