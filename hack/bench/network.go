package main

import (
	"fmt"
	"os"
	"path/filepath"
)

// network is what both sides attach their pods to by the same plugins. Only the
// names and addresses differ: both may have pods at once, and the one must not
// collect the other's addresses as garbage.
const network = `{
  "cniVersion": "1.0.0",
  "name": %[1]q,
  "plugins": [
    {
      "type": "bridge",
      "bridge": "%[1]s0",
      "isGateway": true,
      "hairpinMode": true,
      "ipam": {
        "type": "host-local",
        "ranges": [[{"subnet": %[2]q}]],
        "routes": [{"dst": "0.0.0.0/0"}]
      }
    },
    {
      "type": "portmap",
      "capabilities": {"portMappings": true}
    }
  ]
}
`

// writeNetwork returns the directory that holds the configuration alone.
func writeNetwork(dir, name, subnet string) (conf string, err error) {
	conf = filepath.Join(dir, "net.d")
	return conf, write(filepath.Join(conf, "10-bench.conflist"), fmt.Sprintf(network, name, subnet))
}

func write(path, text string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(text), 0o644)
}
