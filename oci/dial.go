package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// dialTimeout bounds a connection to a loopback address. It takes long only
// where the program that listens does not accept.
const dialTimeout = 10 * time.Second

// Conn is a connection whose directions end one by one.
type Conn interface {
	io.ReadWriteCloser
	// CloseWrite ends what is sent; the other direction goes on.
	CloseWrite() error
}

// Dial connects to a TCP port of the pod's own loopback: 127.0.0.1, else ::1.
func (r *Runtime) Dial(ctx context.Context, p Pod, port uint16) (Conn, error) {
	netns := p.NetNS()
	if p.HostNet {
		netns = ""
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	v4 := &unix.SockaddrInet4{Port: int(port), Addr: [4]byte{127, 0, 0, 1}}
	conn, err := dial(ctx, netns, unix.AF_INET, v4)
	if err == nil {
		return conn, nil
	}
	v6 := &unix.SockaddrInet6{Port: int(port), Addr: [16]byte{15: 1}}
	if conn, err6 := dial(ctx, netns, unix.AF_INET6, v6); err6 == nil {
		return conn, nil
	}
	return nil, fmt.Errorf("connect to port %d: %w", port, err)
}

func dial(ctx context.Context, netns string, family int, to unix.Sockaddr) (Conn, error) {
	fd, err := socketIn(netns, family)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "socket")
	defer f.Close()
	stop := context.AfterFunc(ctx, func() { _ = f.SetWriteDeadline(past) })
	defer stop()
	if err := connect(f, to); err != nil {
		return nil, errors.Join(ctx.Err(), err)
	}
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

// connect waits in the poller.
func connect(f *os.File, to unix.Sockaddr) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	begun := false
	var result error
	err = raw.Write(func(fd uintptr) (done bool) {
		if !begun {
			begun = true
			result = unix.Connect(int(fd), to)
			return !errors.Is(result, unix.EINPROGRESS)
		}
		code, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		switch {
		case err != nil:
			result = err
		case code != 0:
			result = unix.Errno(code)
		default:
			_, result = unix.Getpeername(int(fd))
			return !errors.Is(result, unix.ENOTCONN)
		}
		return true
	})
	if err != nil {
		return err
	}
	return result
}

// socketIn makes a TCP socket in a network namespace, "" being ours. A socket
// stays in the namespace of the thread that made it; the thread is thrown away.
func socketIn(netns string, family int) (fd int, err error) {
	socket := func() (int, error) {
		return unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	}
	if netns == "" {
		return socket()
	}
	ns, err := os.Open(netns)
	if err != nil {
		return -1, err
	}
	defer ns.Close()
	done := make(chan struct{})
	go onThread(func() {
		defer close(done)
		if err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			err = fmt.Errorf("enter %s: %w", netns, err)
			return
		}
		fd, err = socket()
	})
	<-done
	return fd, err
}
