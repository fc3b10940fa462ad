package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// repeats is how often the file of lines goes through a stream.
const repeats = 4

// streaming measures exec and port forwarding as kubectl and crictl use them.
func (b *bench) streaming(ctx context.Context) error {
	ways := []struct {
		name string
		do   func(ctx context.Context, s *side, p *pod, lines string) (received int64, err error)
	}{
		{"exec, from the container", execOut},
		{"exec, to the container", execIn},
		{"port-forward, from the container", forward},
	}
	return b.alternately(ctx, b.rounds, func(side int, s *side) error {
		p, err := s.newPod(b.image, web, runtimeapi.NamespaceMode_POD)
		if err != nil {
			return err
		}
		p.mount(b.lines, "/srv/lines")
		if err := s.through(ctx, p, times{}, "up", up...); err != nil {
			return err
		}
		if err := p.ready(ctx); err != nil {
			return err
		}
		for _, way := range ways {
			begin := time.Now()
			got, err := way.do(ctx, s, p, b.lines)
			if err != nil {
				return fmt.Errorf("%s of %s: %w", way.name, s.name, err)
			}
			if got < repeats*linesSize {
				return fmt.Errorf("%s of %s: %d of %d bytes arrive", way.name, s.name, got, repeats*linesSize)
			}
			b.table.row(way.name, "MB/s", target{ratioAtLeast, 1}).
				add(side, float64(repeats*linesSize)/megabyte/time.Since(begin).Seconds())
		}
		return s.through(ctx, p, times{}, "down", down...)
	})
}

// execOut has a command write the file.
func execOut(ctx context.Context, s *side, p *pod, _ string) (int64, error) {
	script := fmt.Sprintf("for i in $(seq %d); do cat /srv/lines; done", repeats)
	resp, err := s.Exec(ctx, &runtimeapi.ExecRequest{ContainerId: p.container, Cmd: []string{"sh", "-c", script}, Stdout: true})
	if err != nil {
		return 0, err
	}
	session, err := dialSPDY(ctx, resp.GetUrl(), "v4.channel.k8s.io")
	if err != nil {
		return 0, err
	}
	defer session.close()
	status, err := session.stream("error", nil)
	if err != nil {
		return 0, err
	}
	stdout, err := session.stream("stdout", nil)
	if err != nil {
		return 0, err
	}
	n, err := io.Copy(io.Discard, stdout)
	if err != nil {
		return n, err
	}
	_, err = io.Copy(io.Discard, status)
	return n, err
}

// execIn has a command count the file, which is sent in pieces as kubectl does.
func execIn(ctx context.Context, s *side, p *pod, lines string) (received int64, err error) {
	resp, err := s.Exec(ctx, &runtimeapi.ExecRequest{ContainerId: p.container, Cmd: []string{"wc", "-c"}, Stdin: true, Stdout: true})
	if err != nil {
		return 0, err
	}
	session, err := dialSPDY(ctx, resp.GetUrl(), "v4.channel.k8s.io")
	if err != nil {
		return 0, err
	}
	defer session.close()
	if _, err := session.stream("error", nil); err != nil {
		return 0, err
	}
	stdin, err := session.stream("stdin", nil)
	if err != nil {
		return 0, err
	}
	stdout, err := session.stream("stdout", nil)
	if err != nil {
		return 0, err
	}
	for range repeats {
		if err := send(stdin, lines); err != nil {
			return 0, err
		}
	}
	if err := stdin.Close(); err != nil {
		return 0, err
	}
	_, err = fmt.Fscan(stdout, &received)
	return received, err
}

func send(w io.Writer, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(w, f)
	return err
}

// forward has the web server of a pod send the file.
func forward(ctx context.Context, s *side, p *pod, _ string) (received int64, err error) {
	resp, err := s.PortForward(ctx, &runtimeapi.PortForwardRequest{PodSandboxId: p.id, Port: []int32{80}})
	if err != nil {
		return 0, err
	}
	session, err := dialSPDY(ctx, resp.GetUrl(), "portforward.k8s.io")
	if err != nil {
		return 0, err
	}
	defer session.close()
	for i := range repeats {
		header := http.Header{"Port": {"80"}, "Requestid": {strconv.Itoa(i)}}
		status, err := session.stream("error", header)
		if err != nil {
			return received, err
		}
		if err := status.Close(); err != nil {
			return received, err
		}
		data, err := session.stream("data", header)
		if err != nil {
			return received, err
		}
		if _, err := io.WriteString(data, "GET /lines HTTP/1.0\r\n\r\n"); err != nil {
			return received, err
		}
		n, err := io.Copy(io.Discard, data)
		if err != nil {
			return received, err
		}
		received += n
	}
	return received, nil
}
