package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"

	"k8s.io/klog/v2"

	"berth/cri"
	"berth/cri/admin"
	"berth/image"
	"berth/oci"
	"berth/sandbox"
)

// run wires the rooms together and serves until ctx ends; c was read from path.
// Containers run on after it has returned.
func run(ctx context.Context, c config, path string) (err error) {
	if err := oci.CheckRoot(); err != nil {
		return err
	}
	unlock, err := takeRunDir(c.RunDir)
	if err != nil {
		return err
	}
	defer unlock()
	// Clients may connect from here on; they are answered once all is open.
	listener, err := cri.Listen(ctx, c.Socket)
	if err != nil {
		return err
	}
	defer listener.Close()

	images := &image.Store{Dir: c.DataDir, Registries: c.registries(), MaxWindow: c.Image.ZstdWindow}
	if err := images.Open(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, images.Close()) }()

	network := c.network()
	runtimes, err := openRuntimes(ctx, c)
	if err != nil {
		return err
	}
	defer runtimes.close()

	streams, err := cri.ListenStreams(ctx, c.Streaming.Address)
	if err != nil {
		return err
	}
	defer streams.Close()
	pods := &sandbox.Pods{
		Dir:            podsDir(c.RunDir),
		Mirror:         filepath.Join(c.DataDir, "pods"),
		DefaultRuntime: c.Runtime.Default,
		Runtimes:       runtimes.handlers,
		Network:        network,
		Images:         images,
		Listening:      []netip.AddrPort{streams.Address()},
		NoFile:         c.Container.Nofile,

		UnprivilegedPorts: c.Network.UnprivilegedPorts,
		UnprivilegedPing:  c.Network.UnprivilegedPing,
	}
	if err := pods.Open(ctx); err != nil {
		return fmt.Errorf("recover pods of %s: %w", pods.Dir, err)
	}
	defer pods.Close()

	settings := &settings{
		path: path, config: c, images: images, network: network,
		runtimes: runtimes.shown, limits: shownLimits{Nofile: pods.OpenFiles()},
	}
	defer settings.follow(ctx)()
	defer returnMemory(ctx)()

	server := &cri.Server{Pods: pods, Images: images, Network: network, Runtime: runtimes, Info: settings.info, Streams: streams}
	klog.InfoS("Serving CRI", "version", admin.Version, "socket", c.Socket, "runDir", c.RunDir, "dataDir", c.DataDir)
	return server.Serve(ctx, listener)
}
