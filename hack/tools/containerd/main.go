package main

import (
	"context"
	"fmt"
	"os"

	_ "github.com/containerd/containerd/v2/cmd/containerd/builtins"
	"github.com/containerd/containerd/v2/cmd/containerd/command"
	"github.com/opencontainers/runtime-spec/specs-go"
)

func main() {
	if version := os.Getenv("CONTAINERD_OCI_VERSION"); version != "" {
		specs.Version = version
	}
	if err := command.App().Run(context.Background(), os.Args); err != nil {
		fmt.Fprintln(os.Stderr, "containerd:", err)
		os.Exit(1)
	}
}
