package main

import (
	"fmt"
	"path/filepath"
)

// berth is berthd with the defaults of its configuration, but for directories.
func berth(o options, oci, dir string) (*side, error) {
	s := &side{name: "Berth", dir: filepath.Join(dir, "berth"), socket: "/run/berth/berth.sock"}
	conf, err := writeNetwork(s.dir, "berth", "10.88.0.0/16")
	if err != nil {
		return nil, err
	}
	config := filepath.Join(s.dir, "berthd.toml")
	if err := write(config, fmt.Sprintf(`data_dir = %q

[runtime]
default = %q

[runtime.handlers.%[2]s]
path = %[3]q

[network]
conf_dir = %[4]q
bin_dirs = [%[5]q]
`, filepath.Join(s.dir, "data"), filepath.Base(oci), oci, conf, o.plugins())); err != nil {
		return nil, err
	}
	s.programs = []string{filepath.Join(o.bin, "berthd"), filepath.Join(o.bin, "berth-keeper")}
	s.args = []string{s.programs[0], "--config", config}
	return s, nil
}
