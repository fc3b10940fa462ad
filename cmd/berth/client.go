package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"syscall"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/cri/admin"
)

// client is a connection to berthd.
type client struct {
	conn    *grpc.ClientConn
	runtime runtimeapi.RuntimeServiceClient
	images  runtimeapi.ImageServiceClient
}

// withClient makes a command that works with the daemon.
func withClient(do func(ctx context.Context, cmd *cobra.Command, c *client, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		socket, err := cmd.Flags().GetString("socket")
		if err != nil {
			return err
		}
		c, err := dial(cmd.Context(), socket)
		if err != nil {
			return err
		}
		defer c.conn.Close()
		return ended(cmd.Context(), do(cmd.Context(), cmd, c, args))
	}
}

// dial connects to the daemon, or says why that is not possible and what to do.
func dial(ctx context.Context, socket string) (*client, error) {
	// gRPC connects later and tells little: a connection of our own finds out.
	probe, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	switch {
	case errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("berthd does not answer at unix://%s: is it running? start it as root with `berthd`, or name its socket with --socket", socket)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("you may not use unix://%s: run berth as root", socket)
	case err != nil:
		return nil, fmt.Errorf("connect to berthd: %w", err)
	}
	probe.Close()

	conn, err := grpc.NewClient("unix:"+socket,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(admin.MaxMessage), grpc.MaxCallSendMsgSize(admin.MaxMessage)))
	if err != nil {
		return nil, fmt.Errorf("connect to berthd on %s: %w", socket, err)
	}
	return &client{
		conn:    conn,
		runtime: runtimeapi.NewRuntimeServiceClient(conn),
		images:  runtimeapi.NewImageServiceClient(conn),
	}, nil
}
