package cri

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"net/http"
	"strconv"
	"sync"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/klog/v2"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/wsstream"

	"berth/sandbox"
)

const (
	// maxPorts is as many as WebSocket has channels for, two a port.
	maxPorts = 127
	// maxPairs bounds the connections of a SPDY session of which only one stream
	// has come.
	maxPairs = 100
	// uploadGrace is how long a client may go on sending when the pod's side has
	// ended: a program that ends its answer early may still read.
	uploadGrace = 5 * time.Second
)

func checkPorts(ports []int32) error {
	if len(ports) > maxPorts {
		return &sandbox.InvalidError{Field: "port", Reason: fmt.Sprintf("has %d ports; %d is the most", len(ports), maxPorts)}
	}
	for i, port := range ports {
		if port < 1 || port > math.MaxUint16 {
			return &sandbox.InvalidError{Field: fmt.Sprintf("port[%d]", i), Reason: fmt.Sprintf("%d is not between 1 and %d", port, math.MaxUint16)}
		}
	}
	return nil
}

// portForward serves a PortForward.
func (c *session) portForward(pod *sandbox.Pod, ports []int32) {
	var err error
	if wsstream.IsWebSocketRequest(c.r) {
		err = c.forwardWebSocket(pod, ports)
	} else {
		err = c.forwardSPDY(pod)
	}
	if err != nil {
		klog.V(callLevel).InfoS("Streaming session did not begin", "kind", c.kind, "pod", pod.ID(), "reason", err)
	}
}

// forwardSPDY serves any number of connections: two streams each, for data and
// for errors, that carry the port and an id of the connection.
func (c *session) forwardSPDY(pod *sandbox.Pod) error {
	if _, err := httpstream.Handshake(c.r, c.w, portforward.SupportedProtocols); err != nil {
		return err
	}
	conn, err := c.upgradeSPDY(checkForwarded)
	if err != nil {
		return err
	}
	var connections sync.WaitGroup
	defer connections.Wait()
	pairs := map[string]map[string]httpstream.Stream{}
	for {
		var s httpstream.Stream
		select {
		case s = <-conn.streams:
		case <-c.ctx.Done():
			return nil
		}
		id, kind := requestID(s), s.Headers().Get(portforward.StreamType)
		pair := pairs[id]
		if pair == nil && len(pairs) < maxPairs {
			pair = map[string]httpstream.Stream{}
			pairs[id] = pair
		}
		if pair == nil || pair[kind] != nil {
			conn.reset(s)
			continue
		}
		pair[kind] = s
		if len(pair) < 2 {
			continue
		}
		delete(pairs, id)
		data, errs := pair[portforward.StreamTypeData], pair[portforward.StreamTypeError]
		port, _ := strconv.ParseUint(s.Headers().Get(portforward.PortHeader), 10, 16) // it is one: checkForwarded
		connections.Go(func() {
			c.forward(pod, uint16(port), forwarded{data, errs, uploadGrace, func() { conn.reset(data) }})
			errs.Close()
			conn.reset(errs)
		})
	}
}

// checkForwarded refuses a stream that is none of a connection's.
func checkForwarded(s httpstream.Stream) error {
	text := s.Headers().Get(portforward.PortHeader)
	if port, err := strconv.ParseUint(text, 10, 16); err != nil || port == 0 {
		return fmt.Errorf("header %s: %.20q is no port", portforward.PortHeader, text)
	}
	switch kind := s.Headers().Get(portforward.StreamType); kind {
	case portforward.StreamTypeData, portforward.StreamTypeError:
		return nil
	default:
		return fmt.Errorf("header %s: %.20q is no type of stream", portforward.StreamType, kind)
	}
}

// requestID says which connection a stream belongs to. Where an old client does
// not, it opens the stream for errors and then, as the next one, that for data.
func requestID(s httpstream.Stream) string {
	if id := s.Headers().Get(portforward.PortForwardRequestIDHeader); id != "" {
		return "id " + id
	}
	id := s.Identifier()
	if s.Headers().Get(portforward.StreamType) == portforward.StreamTypeData {
		id -= 2 // a client's streams have odd numbers
	}
	return fmt.Sprint("stream ", id)
}

// forwardWebSocket serves one connection to each port: two channels each, for
// data and for errors, which begin with the port.
func (c *session) forwardWebSocket(pod *sandbox.Pod, ports []int32) error {
	if len(ports) == 0 {
		err := fmt.Errorf("the request for this URL named no port")
		http.Error(c.w, err.Error(), http.StatusBadRequest)
		return err
	}
	var channels []wsstream.ChannelType
	for range ports {
		channels = append(channels, wsstream.ReadWriteChannel, wsstream.WriteChannel)
	}
	_, got, err := c.upgradeWebSocket(map[string]wsstream.ChannelProtocolConfig{
		"v4." + wsstream.ChannelWebSocketProtocol:       {Binary: true, Channels: channels},
		"v4." + wsstream.Base64ChannelWebSocketProtocol: {Binary: false, Channels: channels},
		"": {Binary: true, Channels: channels},
	})
	if err != nil {
		return err
	}
	var connections sync.WaitGroup
	for i, port := range ports {
		data, errs := got[2*i], got[2*i+1]
		head := binary.LittleEndian.AppendUint16(nil, uint16(port))
		_, _ = data.Write(head)
		_, _ = errs.Write(head)
		connections.Go(func() {
			// A channel has no end of its own: the client has to be told by the
			// connection's.
			c.forward(pod, uint16(port), forwarded{data, errs, 0, func() { data.Close() }})
		})
	}
	connections.Wait()
	c.told = true
	return nil
}

// forwarded is one connection of a client's.
type forwarded struct {
	data  io.ReadWriteCloser
	errs  io.Writer
	grace time.Duration // for what the client sends after the pod's side has ended
	reset func()        // ends a Read of data under way
}

// forward connects f with a port of the pod and returns when the pod's side has
// ended, or the session.
func (c *session) forward(pod *sandbox.Pod, port uint16, f forwarded) {
	ctx := c.ctx
	conn, err := pod.Dial(ctx, port)
	if err != nil {
		_, _ = io.WriteString(f.errs, err.Error())
		f.data.Close()
		f.reset()
		return
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	defer conn.Close()
	defer c.beat(f.errs)()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		_, err := io.Copy(conn, f.data)
		_ = conn.CloseWrite()
		if err != nil { // the pod reads no more; its answer may still come
			_, _ = io.Copy(io.Discard, f.data)
		}
	}()
	if _, err := io.Copy(f.data, conn); err != nil && ctx.Err() == nil {
		_, _ = io.WriteString(f.errs, err.Error())
	}
	f.data.Close()
	grace := time.NewTimer(f.grace)
	defer grace.Stop()
	select {
	case <-sent:
	case <-grace.C:
	case <-ctx.Done():
	}
	conn.Close()
	f.reset()
	<-sent
}
