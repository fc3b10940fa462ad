package image

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/registry/remote"

	"berth/test/leak"
)

// startDistribution runs the CNCF distribution registry and returns its host.
func startDistribution(t *testing.T) string {
	t.Helper()
	bin := leak.NeedTool(t, "registry")
	dir := t.TempDir()
	config := filepath.Join(dir, "config.yml")
	check(os.WriteFile(config, fmt.Appendf(nil, `
version: 0.1
log: {accesslog: {disabled: true}, level: info, formatter: text}
storage: {filesystem: {rootdirectory: %s}}
http: {addr: "127.0.0.1:0"}
`, filepath.Join(dir, "data")), 0o600))
	cmd := exec.Command(bin, "serve", config)
	cmd.Env = append(os.Environ(), "OTEL_TRACES_EXPORTER=none")
	logs := must(cmd.StderrPipe())
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGKILL)
		_ = cmd.Wait()
	})
	listening := regexp.MustCompile(`listening on (127\.0\.0\.1:[0-9]+)`)
	var said strings.Builder
	lines := bufio.NewScanner(logs)
	for lines.Scan() {
		said.WriteString(lines.Text() + "\n")
		if m := listening.FindStringSubmatch(lines.Text()); m != nil {
			go func() { // until the process ends, so that it never blocks on its log
				for lines.Scan() {
				}
			}()
			return m[1]
		}
	}
	t.Fatalf("the registry does not listen: %s", said.String())
	return ""
}

// TestDistribution pushes an index of images to the real registry and pulls it.
func TestDistribution(t *testing.T) {
	ctx := context.Background()
	s := newStore(t)
	host := startDistribution(t)
	repo := must(remote.NewRepository(host + "/team/app"))
	repo.PlainHTTP = true
	push := func(mediaType string, data []byte) ocispec.Descriptor {
		d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
		check(repo.Push(ctx, d, bytes.NewReader(data)))
		return d
	}
	image := func(architecture string, layers ...[]byte) ocispec.Descriptor {
		config := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: architecture}, RootFS: ocispec.RootFS{Type: "layers"}}
		m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
		for i, l := range layers {
			config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromBytes(l))
			if i%2 == 0 {
				m.Layers = append(m.Layers, push(ocispec.MediaTypeImageLayerGzip, gzipped(l)))
			} else {
				m.Layers = append(m.Layers, push(ocispec.MediaTypeImageLayerZstd, zstded(l)))
			}
		}
		m.Config = push(ocispec.MediaTypeImageConfig, must(json.Marshal(config)))
		d := push(ocispec.MediaTypeImageManifest, must(json.Marshal(m)))
		d.Platform = &config.Platform
		return d
	}
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{
		image("s390x", files("f", "other")),
		image(runtime.GOARCH, files("f", "base"), files("g", noise(5<<20, "g")), files("f", "top")),
	}}
	d := push(ocispec.MediaTypeImageIndex, must(json.Marshal(index)))
	check(repo.Tag(ctx, d, "v1"))

	img := pull(t, s, host+"/team/app:v1")
	if again := pull(t, s, host+"/team/app@"+d.Digest.String()); again.ID != img.ID {
		t.Errorf("by digest it is %s, by tag %s", again.ID, img.ID)
	}
	root := newRoot(t, s, "c", img)
	if got := readAt(t, root, "f"); got != "top" {
		t.Errorf("f is %q", got)
	}
	check(syscall.Unmount(root, 0))
	removeRoot(t, s, "c")
	for _, missing := range []string{"/team/app:v2", "/team/none:v1"} {
		if _, err := s.Pull(ctx, Pull{Ref: host + missing}); err == nil || !strings.Contains(err.Error(), "unknown") {
			t.Errorf("%s: %v", missing, err)
		}
	}
}
