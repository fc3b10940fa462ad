package main

import (
	"fmt"
	"os"
	"path/filepath"
)

// oldestOCI is the version of runtime specs that every OCI runtime takes. crun of
// Debian 12 refuses the one that containerd writes; Berth asks what a runtime takes.
const oldestOCI = "1.0.2"

// containerd is containerd with the defaults of its configuration, but for
// directories, the pause image of this run, cgroupfs instead of systemd, and what
// the machine may lack: AppArmor, and the right to lower an oom_score_adj.
func containerd(o options, oci, dir, pause string) (*side, error) {
	s := &side{name: "containerd", dir: filepath.Join(dir, "containerd"), socket: "/run/containerd/containerd.sock"}
	conf, err := writeNetwork(s.dir, "containerd", "10.89.0.0/16")
	if err != nil {
		return nil, err
	}
	config := filepath.Join(s.dir, "config.toml")
	if err := write(config, fmt.Sprintf(`version = 4
root = %q
state = "/run/containerd"
disabled_plugins = ["io.containerd.internal.v1.opt"]

[plugins."io.containerd.cri.v1.images"]
snapshotter = "overlayfs"

[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = %q

[plugins."io.containerd.cri.v1.runtime"]
disable_apparmor = true
restrict_oom_score_adj = true

[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = [%[3]q]
conf_dir = %[4]q

[plugins."io.containerd.cri.v1.runtime".containerd]
default_runtime_name = %[5]q

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.%[5]s]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.%[5]s.options]
BinaryName = %[6]q
SystemdCgroup = false
`, filepath.Join(s.dir, "root"), pause, o.plugins(), conf, filepath.Base(oci), oci)); err != nil {
		return nil, err
	}
	s.programs = []string{filepath.Join(o.tools, "containerd"), filepath.Join(o.tools, "containerd-shim-runc-v2")}
	s.args = []string{s.programs[0], "--config", config}
	// Where it looks for its shim, and its shim for a runc to say what that can.
	s.env = append(os.Environ(), fmt.Sprintf("PATH=%s:%s:%s", o.tools, o.libexec, os.Getenv("PATH")))
	if filepath.Base(oci) != "runc" {
		s.env = append(s.env, "CONTAINERD_OCI_VERSION="+oldestOCI)
	}
	return s, nil
}
