package conformance

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"

	"berth/oci/cgroup"
	"berth/test/expect"
	"berth/test/registry"
)

// A flood is an image that is small to send and large to read.
type flood struct {
	name string
	push func(t *testing.T, n *node, name string)
	want string // in the error; "": it is pulled
}

var floods = []flood{
	{"comments", pushComments, ""},
	{"history", pushHistory, "values"},
	{"layers", pushEmptyLayers, "values"},
	{"windows128", pushHugeWindows, "zstd window"},
	{"windows32", pushLargeWindows, ""},
}

// pull is one pull of the flood, after it was pushed.
func (f flood) pull(t *testing.T, n *node) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	err := n.tryPull(ctx, n.registry.Host()+"/"+f.name+":1")
	if f.want == "" {
		expect.Code(t, f.name, err, codes.OK)
		return
	}
	expect.Code(t, f.name, err, codes.FailedPrecondition, f.want)
}

// Images whose text is more than a node's memory, in a cgroup that is just large enough
// for berthd: each pull succeeds or says why not, and an honest one succeeds.
func TestFloodsInLittleMemory(t *testing.T) {
	onOneNode(t, func(t *testing.T, n *node) {
		path := n.boundMemory(t, 64<<20)
		for _, f := range floods {
			f.push(t, n, f.name)
			f.pull(t, n)
			neverKilled(t, path, f.name)
		}
		// Windows of 8 MiB are what much used tools ask for: sixteen layers at once.
		var together []flood
		for i := range 4 {
			f := flood{name: fmt.Sprint("together", i)}
			pushWindows(t, n, f.name, 8<<20, 9<<20)
			together = append(together, f)
		}
		var all sync.WaitGroup
		for _, f := range together {
			all.Go(func() { f.pull(t, n) })
		}
		all.Wait()
		neverKilled(t, path, "four images at once")
		n.pull(t, n.busybox)
	})
}

func neverKilled(t *testing.T, path, when string) {
	t.Helper()
	if kills := cgroup.OOMKills(path); kills > 0 {
		t.Fatalf("after %s: the kernel has killed %d processes for want of memory", when, kills)
	}
}

// What a burst of a hundred floods took is given back soon after the last one.
func TestMemoryOfFloodsGoesBack(t *testing.T) {
	onOneNode(t, func(t *testing.T, n *node) {
		quick := floods[1:]
		for _, f := range quick {
			f.push(t, n, f.name)
			f.pull(t, n)
		}
		for range 32 {
			for _, f := range quick {
				if f.want != "" { // an image that was pulled is not fetched again
					f.pull(t, n)
				}
			}
		}
		if peak := n.peakMemory(t); peak <= 40<<20 {
			t.Fatalf("the burst took %d MiB only", peak>>20)
		}
		eventually(t, "berthd has at most 40 MiB", func() bool { return n.memory(t, "VmRSS") <= 40<<20 })
	})
}

// boundMemory starts berthd anew in a cgroup of its own that has so many bytes.
func (n *node) boundMemory(t *testing.T, most int) (path string) {
	t.Helper()
	path = fmt.Sprintf("/berthd-%d", os.Getpid())
	mount := memoryMount(t)
	dir := filepath.Join(mount, path)
	delegate(t, mount)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		pids, err := cgroup.Procs(path)
		for _, pid := range pids { // berthd, and what it has started
			err = errors.Join(err, os.WriteFile(filepath.Join(mount, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0))
		}
		if err = errors.Join(err, os.Remove(dir)); err != nil {
			t.Error(err)
		}
	})
	for _, limit := range []struct {
		file  string
		bytes int
	}{
		{"memory.limit_in_bytes", most}, {"memory.memsw.limit_in_bytes", most}, // v1: with swap and without
		{"memory.max", most}, {"memory.swap.max", 0},
	} {
		err := os.WriteFile(filepath.Join(dir, limit.file), []byte(strconv.Itoa(limit.bytes)), 0)
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) {
			t.Fatal(err)
		}
	}
	n.startBehind(t, "echo $$ >"+filepath.Join(dir, "cgroup.procs"), "")
	return path
}

// memoryMount is where the hierarchy with the memory controller is.
func memoryMount(t *testing.T) string {
	t.Helper()
	for _, at := range cgroupMounts(t) {
		for _, file := range []string{"memory.limit_in_bytes", "cgroup.controllers"} {
			if _, err := os.Stat(filepath.Join(at, file)); err == nil {
				return at
			}
		}
	}
	t.Fatal("there is no memory controller")
	return ""
}

// packed is a layer as it is sent, and its tar's digest.
type packed struct {
	blob   []byte
	diffID digest.Digest
}

// pack compresses the tar that write writes.
func pack(t *testing.T, compressed func(w io.Writer) (io.WriteCloser, error), write func(w io.Writer) error) packed {
	t.Helper()
	var blob bytes.Buffer
	z, err := compressed(&blob)
	if err != nil {
		t.Fatal(err)
	}
	sum := digest.Canonical.Digester()
	err = write(io.MultiWriter(z, sum.Hash()))
	if err = errors.Join(err, z.Close()); err != nil {
		t.Fatal(err)
	}
	return packed{blob.Bytes(), sum.Digest()}
}

func pushPacked(t *testing.T, n *node, name string, layers []packed) {
	t.Helper()
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	config := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}, RootFS: ocispec.RootFS{Type: "layers"}}
	for _, layer := range layers {
		m.Layers = append(m.Layers, n.registry.Blob(name, ocispec.MediaTypeImageLayer, layer.blob))
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, layer.diffID)
	}
	m.Config = n.registry.Blob(name, ocispec.MediaTypeImageConfig, encode(t, config))
	n.registry.Manifest(name, "1", encode(t, m))
}

func encode(t *testing.T, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// pushComments: 600 directories, each with a comment of a megabyte.
func pushComments(t *testing.T, n *node, name string) {
	t.Helper()
	fast := func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriterLevel(w, gzip.BestSpeed) }
	comment := strings.Repeat("x", 1000<<10)
	layer := pack(t, fast, func(to io.Writer) error {
		w := tar.NewWriter(to)
		for i := range 600 {
			h := tar.Header{Typeflag: tar.TypeDir, Name: fmt.Sprint("d", i), Mode: 0o755, Format: tar.FormatPAX, PAXRecords: map[string]string{"comment": comment}}
			if err := w.WriteHeader(&h); err != nil {
				return err
			}
		}
		return w.Close()
	})
	pushPacked(t, n, name, []packed{layer})
}

// pushHistory: a config of 8 MiB, all of it empty entries of the history.
func pushHistory(t *testing.T, n *node, name string) {
	t.Helper()
	const head, tail = `{"os":"linux","rootfs":{"type":"layers","diff_ids":[]},"history":[{}`, `]}`
	config := head + strings.Repeat(",{}", (8<<20-len(head)-len(tail))/3) + tail
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Layers: []ocispec.Descriptor{}}
	m.Config = n.registry.Blob(name, ocispec.MediaTypeImageConfig, []byte(config))
	n.registry.Manifest(name, "1", encode(t, m))
}

// pushEmptyLayers: a manifest of 4 MiB, all of it empty layers.
func pushEmptyLayers(t *testing.T, n *node, name string) {
	t.Helper()
	const head, tail = `{"schemaVersion":2,"layers":[{}`, `]}`
	n.registry.Manifest(name, "1", []byte(head+strings.Repeat(",{}", (4<<20-len(head)-len(tail))/3)+tail))
}

func pushHugeWindows(t *testing.T, n *node, name string)  { pushWindows(t, n, name, 128<<20, 33<<20) }
func pushLargeWindows(t *testing.T, n *node, name string) { pushWindows(t, n, name, 32<<20, 33<<20) }

// pushWindows: four layers that are inflated with a window of so many bytes. Each has size
// bytes, to fill it.
func pushWindows(t *testing.T, n *node, name string, window, size int) {
	t.Helper()
	asking := func(w io.Writer) (io.WriteCloser, error) {
		return zstd.NewWriter(w, zstd.WithWindowSize(window), zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
	}
	var layers []packed
	for i := range 4 {
		text := registry.Layer(t, registry.File(fmt.Sprint(name, i), 0o644, strings.Repeat("x", size)))
		layers = append(layers, pack(t, asking, func(to io.Writer) error {
			_, err := to.Write(text)
			return err
		}))
	}
	pushPacked(t, n, name, layers)
}
