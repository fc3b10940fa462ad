package cri

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net/http"
	"slices"
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
	// maxForwarded bounds the connections of a SPDY session, and maxPairs those of
	// which only one stream has come.
	maxForwarded = 256
	maxPairs     = 100
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

// forwardSPDY serves any number of connections, maxForwarded at a time: two streams
// each, for data and for errors, that carry the port and an id of the connection.
func (c *session) forwardSPDY(pod *sandbox.Pod) error {
	if _, err := httpstream.Handshake(c.r, c.w, portforward.SupportedProtocols); err != nil {
		return err
	}
	conn, err := c.upgradeSPDY(2*maxForwarded+maxPairs, checkForwarded)
	if err != nil {
		return err
	}
	var connections sync.WaitGroup
	defer connections.Wait()
	places := make(chan struct{}, maxForwarded)
	var pairs pairs
	for {
		var s httpstream.Stream
		select {
		case s = <-conn.streams:
		case <-c.ctx.Done():
			return nil
		}
		pair, left := pairs.add(s)
		for _, s := range left {
			conn.reset(s)
		}
		if pair == nil {
			continue
		}
		data, errs := pair[portforward.StreamTypeData], pair[portforward.StreamTypeError]
		select {
		case places <- struct{}{}:
		default:
			klog.V(callLevel).InfoS("Connection to a forwarded port refused", "pod", pod.ID(), "reason", fmt.Sprintf("the session has %d", maxForwarded))
			conn.reset(data)
			conn.reset(errs)
			continue
		}
		port, _ := strconv.ParseUint(s.Headers().Get(portforward.PortHeader), 10, 16) // it is one: checkForwarded
		connections.Go(func() {
			c.forward(pod, uint16(port), forwarded{
				data: data, beat: errs, grace: uploadGrace,
				fail:  func(err error) { failSPDY(pod, errs, err) },
				reset: func() { conn.reset(data) },
			})
			errs.Close()
			conn.reset(errs)
			<-places
		})
	}
}

// failSPDY tells the client why a connection has failed only where all others will
// fail as well: kubectl ends its whole session when any connection has an error. A
// connection that is refused or reset just ends.
func failSPDY(pod *sandbox.Pod, errs io.Writer, err error) {
	if errors.Is(err, sandbox.ErrNotReady) || errors.Is(err, sandbox.ErrNotFound) {
		_, _ = io.WriteString(errs, err.Error())
		return
	}
	klog.V(callLevel).InfoS("Connection to a forwarded port ended", "pod", pod.ID(), "reason", err)
}

// pairs are the connections of a SPDY session of which one stream is missing.
type pairs struct {
	byID map[string]map[string]httpstream.Stream // by type
	ids  []string                                // the oldest first
}

// add returns the pair that s completes, or nil, and the streams that are to be
// reset: a second one of a type, and the oldest half of a pair when there are too
// many.
func (p *pairs) add(s httpstream.Stream) (pair map[string]httpstream.Stream, left []httpstream.Stream) {
	id, kind := requestID(s), s.Headers().Get(portforward.StreamType)
	pair = p.byID[id]
	switch {
	case pair == nil:
		if p.byID == nil {
			p.byID = map[string]map[string]httpstream.Stream{}
		}
		p.byID[id] = map[string]httpstream.Stream{kind: s}
		p.ids = append(p.ids, id)
	case pair[kind] != nil:
		return nil, []httpstream.Stream{s}
	default:
		pair[kind] = s
		delete(p.byID, id)
		p.ids = slices.DeleteFunc(p.ids, func(other string) bool { return other == id })
		return pair, nil
	}
	if len(p.ids) > maxPairs {
		left = slices.Collect(maps.Values(p.byID[p.ids[0]]))
		delete(p.byID, p.ids[0])
		p.ids = p.ids[1:]
	}
	return nil, left
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
			c.forward(pod, uint16(port), forwarded{
				data: data, beat: errs,
				fail:  func(err error) { _, _ = io.WriteString(errs, err.Error()) },
				reset: func() { data.Close() },
			})
		})
	}
	connections.Wait()
	c.told = true
	return nil
}

// forwarded is one connection of a client's.
type forwarded struct {
	data  io.ReadWriteCloser
	beat  io.Writer       // takes signs of life
	fail  func(err error) // says why the connection failed
	grace time.Duration   // for what the client sends after the pod's side has ended
	reset func()          // ends a Read of data under way
}

// errTooManyFiles: streaming has its share of berthd's descriptors open.
var errTooManyFiles = errors.New("too many streaming sessions and connections are open on this node: end some")

// forward connects f with a port of the pod and returns when the pod's side has
// ended, or the session. Nothing that happens to the connection reaches further.
func (c *session) forward(pod *sandbox.Pod, port uint16, f forwarded) {
	ctx := c.ctx
	conn, err := c.dial(pod, port)
	if err != nil {
		f.fail(err)
		f.data.Close()
		f.reset()
		return
	}
	defer c.of.files.give(forwardFiles)
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	defer conn.Close()
	defer c.beat(f.beat)()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		_, err := io.Copy(conn, f.data)
		_ = conn.CloseWrite()
		if err != nil { // the pod reads no more; its answer may still come
			_, _ = io.Copy(io.Discard, f.data)
		}
	}()
	_, err = io.Copy(f.data, conn)
	f.data.Close()
	if err == nil {
		c.awaitSent(sent, f.grace)
	} else if ctx.Err() == nil {
		f.fail(err)
	}
	conn.Close()
	f.reset()
	<-sent
}

// dial connects to a port of the pod. The descriptors of the connection are the
// caller's to give back.
func (c *session) dial(pod *sandbox.Pod, port uint16) (sandbox.Conn, error) {
	if !c.of.files.take(forwardFiles) {
		return nil, errTooManyFiles
	}
	conn, err := pod.Dial(c.ctx, port)
	if err != nil {
		c.of.files.give(forwardFiles)
		return nil, err
	}
	return conn, nil
}

// awaitSent waits until the client has sent all that it wanted to, at most grace.
func (c *session) awaitSent(sent <-chan struct{}, grace time.Duration) {
	most := time.NewTimer(grace)
	defer most.Stop()
	select {
	case <-sent:
	case <-most.C:
	case <-c.ctx.Done():
	}
}
