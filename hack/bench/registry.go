package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// registryHost is where the images of a run come from, within its namespaces.
const registryHost = "127.0.0.1:5000"

// startRegistry returns when it can be reached.
func startRegistry(ctx context.Context, o options, dir string) error {
	config := filepath.Join(dir, "registry.yml")
	if err := write(config, fmt.Sprintf(`version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage: {inmemory: {}}
http: {addr: %q}
`, registryHost)); err != nil {
		return err
	}
	cmd := exec.Command(filepath.Join(o.tools, "registry"), "serve", config)
	cmd.Env = append(os.Environ(), "OTEL_TRACES_EXPORTER=none")
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start registry: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	again := time.NewTicker(10 * time.Millisecond)
	defer again.Stop()
	for {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", registryHost)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("reach registry: %w", err)
		case <-again.C:
		}
	}
}
