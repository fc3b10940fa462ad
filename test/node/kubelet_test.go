//go:build node

package node

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"berth/test/leak"
)

// kubeletAPI is where the kubelet serves, with a certificate that it has signed
// itself.
const kubeletAPI = "127.0.0.1:10250"

// kubeletPage is where a node's configuration is documented: the tests run with it.
const kubeletPage = "../../docs/kubelet.md"

// documented is the first block of YAML of the page.
func documented(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(kubeletPage)
	if err != nil {
		t.Fatal(err)
	}
	block := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindSubmatch(text)
	if block == nil {
		t.Fatalf("%s has no configuration", kubeletPage)
	}
	return string(block[1])
}

// here is what the tests' kubelet has besides: directories and cgroups of its own,
// a file system that may be nearly full, and logs that are rotated soon.
const here = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix://%s
staticPodPath: %s
podLogsDir: %s
cgroupRoot: %s
fileCheckFrequency: 1s
imageGCHighThresholdPercent: 100
evictionHard: {memory.available: 1Mi, nodefs.available: 1Mi, imagefs.available: 1Mi}
containerLogMaxSize: 64Ki
containerLogMaxFiles: 20
containerLogMonitorInterval: 3s
featureGates: {PodAndContainerStatsFromCRI: %v}
`

// settings are the sysctls that a kubelet writes. They belong to the whole machine:
// this kubelet finds files with its values in their place.
var settings = map[string]string{
	"vm.overcommit_memory":      "1",
	"vm.panic_on_oom":           "0",
	"kernel.panic":              "10",
	"kernel.panic_on_oops":      "1",
	"kernel.keys.root_maxkeys":  "1000000",
	"kernel.keys.root_maxbytes": "25000000",
}

// underSettings runs a program with the files of a directory as sysctls. It does so
// in a mount namespace of its own, whose other mounts still propagate: below a /proc
// that has something mounted on it the kernel lets no user namespace have its own.
const underSettings = `set -e
mount --make-private /proc
for file in "$1"/*; do mount --bind "$file" "/proc/sys/$(basename "$file" | tr . /)"; done
shift
exec "$@"`

func (n *node) manifests() string { return filepath.Join(n.dir, "manifests") }
func (n *node) podLogs() string   { return filepath.Join(n.dir, "logs") }

func (n *node) startKubelet(t *testing.T) {
	t.Helper()
	config, root := filepath.Join(n.dir, "kubelet.yaml"), filepath.Join(n.dir, "kubelet")
	write(t, config, documented(t))
	write(t, filepath.Join(n.dir, "kubelet.d", "here.conf"),
		fmt.Sprintf(here, n.socket(), n.manifests(), n.podLogs(), cgroupRoot, n.statsFromCRI))
	if err := os.MkdirAll(n.manifests(), 0o755); err != nil {
		t.Fatal(err)
	}
	values := filepath.Join(n.dir, "sysctls")
	for name, value := range settings {
		write(t, filepath.Join(values, name), value+"\n")
	}
	n.kubelet = program{path: leak.NeedTool(t, "unshare"), log: filepath.Join(n.dir, "kubelet.log"), args: []string{
		"--mount", "--propagation", "unchanged", "sh", "-c", underSettings, "sh", values,
		leak.NeedTool(t, "kubelet"), "--config", config, "--config-dir", filepath.Join(n.dir, "kubelet.d"),
		"--root-dir", root, "--cert-dir", filepath.Join(root, "pki"),
		"--hostname-override", "node", "--node-ip", nodeAddress, "-v", "2",
	}}
	n.kubelet.start(t)
	n.awaitKubelet(t)
}

func (n *node) awaitKubelet(t *testing.T) {
	t.Helper()
	within(t, patience, "the kubelet is healthy", func() bool {
		resp, err := client.Get("https://" + kubeletAPI + "/healthz")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
}

var client = &http.Client{
	Timeout: patience,
	Transport: &http.Transport{
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true},
		DisableKeepAlives: true, // the kubelet is killed now and then
	},
}

// get asks the kubelet, and fails t unless the answer is 200.
func get(t *testing.T, path string) []byte {
	t.Helper()
	resp, err := client.Get("https://" + kubeletAPI + path)
	return answer(t, path, resp, err)
}

// runIn runs a command in a container, without input, by the kubelet's API. The
// arguments hold no spaces.
func runIn(t *testing.T, pod, container, command string) string {
	t.Helper()
	path := fmt.Sprintf("/run/default/%s-node/%s?cmd=%s", pod, container, url.QueryEscape(command))
	resp, err := client.Post("https://"+kubeletAPI+path, "", nil)
	return string(answer(t, path, resp, err))
}

func answer(t *testing.T, path string, resp *http.Response, err error) []byte {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s: %s", path, resp.Status, body)
	}
	return body
}

func getJSON[T any](t *testing.T, path string) (v T) {
	t.Helper()
	if err := json.Unmarshal(get(t, path), &v); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return v
}
