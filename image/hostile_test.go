package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// cpu is the processor time that this process has had.
func cpu() time.Duration {
	var use syscall.Rusage
	check(syscall.Getrusage(syscall.RUSAGE_SELF, &use))
	return time.Duration(use.Utime.Nano() + use.Stime.Nano())
}

// TestImpliedDirectoriesAreCheap: a small layer whose directories exist only as parts
// of names costs no more than its names have bytes, in a pull and in a container.
func TestImpliedDirectoriesAreCheap(t *testing.T) {
	wide := []string{}
	for i := range 5000 {
		wide = append(wide, "w/"+strconv.Itoa(i)+"/f", "")
	}
	for name, of := range map[string]struct {
		layers [][]byte
		most   time.Duration
	}{
		"deep": {[][]byte{files(strings.Repeat("d/", 1000)+"f", ""), files(strings.Repeat("d/", 1000)+"g", "")}, time.Second},
		"wide": {[][]byte{files(wide...), files("w/other", "")}, 2 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			f, s := newFake(t), newStore(t)
			f.image("a", "v1", spec{layers: of.layers})
			before := cpu()
			img := pull(t, s, f.host()+"/a:v1")
			if took := cpu() - before; took > of.most {
				t.Errorf("the pull took %v of CPU", took)
			}
			before = cpu()
			root := newRoot(t, s, "one", img)
			if took := cpu() - before; took > of.most {
				t.Errorf("the first root took %v of CPU", took)
			}
			check(unix.Unmount(root, 0))
			before = cpu()
			root = newRoot(t, s, "one", img)
			if took := cpu() - before; took > 50*time.Millisecond {
				t.Errorf("the root's next mount took %v of CPU", took)
			}
			check(unix.Unmount(root, 0))
			removeRoot(t, s, "one")
		})
	}
}

// TestRootIsCancelled: making a root ends with its caller's patience.
func TestRootIsCancelled(t *testing.T) {
	f, s := newFake(t), newStore(t)
	f.image("a", "v1", spec{layers: [][]byte{files("tmp/x", "")}})
	img := pull(t, s, f.host()+"/a:v1")
	check(os.RemoveAll(s.treePath(img.Layers[0])))
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if root, err := s.Root(ctx, "one", img, nil); err == nil {
		root.Close()
		t.Error("a root was made for nobody")
	}
	removeRoot(t, s, "one")
}

// TestDeepWritableLayerIsDeleted: a container may nest directories deeper than files
// may be open, and no path leads to the last one.
func TestDeepWritableLayerIsDeleted(t *testing.T) {
	f, s := newFake(t), newStore(t)
	f.image("a", "v1", spec{layers: [][]byte{files("f", "")}})
	img := pull(t, s, f.host()+"/a:v1")
	check(unix.Unmount(newRoot(t, s, "one", img), 0))
	nest(t, s.path(containersDir, "one", "upper"), "d", 5000)
	var before syscall.Rlimit
	check(syscall.Getrlimit(syscall.RLIMIT_NOFILE, &before))
	few := before
	few.Cur = 200
	check(syscall.Setrlimit(syscall.RLIMIT_NOFILE, &few))
	defer func() { check(syscall.Setrlimit(syscall.RLIMIT_NOFILE, &before)) }()
	removeRoot(t, s, "one")
	s.work.Wait()
	if left, err := filepath.Glob(s.path(trashDir, "*")); err != nil || len(left) > 0 {
		t.Errorf("left in the trash: %q, %v", left, err)
	}
}

// TestLayersThatNoFilesystemTakes: it is the image's fault, and the error says what in
// it is wrong: not that the disk is full, nor a bare errno.
func TestLayersThatNoFilesystemTakes(t *testing.T) {
	f, s := newFake(t), newStore(t)
	with := func(h tar.Header, attrs ...string) []byte {
		h.Format = tar.FormatPAX
		h.PAXRecords = map[string]string{}
		for i := 0; i < len(attrs); i += 2 {
			h.PAXRecords["SCHILY.xattr."+attrs[i]] = attrs[i+1]
		}
		return headersOnly(h)
	}
	file := func(name string) tar.Header { return tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644} }
	for name, of := range map[string]struct {
		layer []byte
		want  string
	}{
		"large attribute":   {with(file("f"), "user.large", strings.Repeat("x", 5<<10)), "user.large"},
		"bad capability":    {with(file("f"), "security.capability", "x"), "security.capability"},
		"bad ACL":           {with(file("f"), "system.posix_acl_access", "\x03xxxxxxxxxxx"), "posix_acl_access"},
		"bad default ACL":   {with(tar.Header{Typeflag: tar.TypeDir, Name: "d", Mode: 0o755}, "system.posix_acl_default", "x"), "posix_acl_default"},
		"long name":         {with(file("d/" + strings.Repeat("n", 256))), "256 bytes"},
		"long directory":    {with(file(strings.Repeat("n", 256) + "/f")), "256 bytes"},
		"long whiteout":     {with(file(".wh." + strings.Repeat("n", 256))), "256 bytes"},
		"empty link target": {empty(with(tar.Header{Typeflag: tar.TypeSymlink, Name: "s", Linkname: "t"})), "without a target"},
		"long link target":  {with(tar.Header{Typeflag: tar.TypeSymlink, Name: "s", Linkname: strings.Repeat("t", 4096)}), "target"},
		"link through a long name": {headersOnly(
			tar.Header{Typeflag: tar.TypeSymlink, Name: "s", Linkname: strings.Repeat("t", 300)}, file("s/f")), "too long"},
		"deep": {files(strings.Repeat("d/", 1880)+"f", ""), "nested deeper"},
	} {
		t.Run(name, func(t *testing.T) {
			f.image("a", "v1", spec{layers: [][]byte{of.layer}})
			_, err := s.Pull(context.Background(), Pull{Ref: f.host() + "/a:v1"})
			if !errors.Is(err, ErrInvalidImage) || errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), of.want) {
				t.Errorf("got %v, want ErrInvalidImage and %q", err, of.want)
			}
		})
	}
}

// headersOnly is a tar of entries without content.
func headersOnly(headers ...tar.Header) []byte {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range headers {
		check(w.WriteHeader(&h))
	}
	check(w.Close())
	return buf.Bytes()
}

// empty takes the link's target, of one byte, from the last header of a tar.
func empty(data []byte) []byte {
	header := data[len(data)-1024-512 : len(data)-1024]
	header[157] = 0
	copy(header[148:156], "        ")
	sum := 0
	for _, b := range header {
		sum += int(b)
	}
	copy(header[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return data
}

// TestEmptyValuesCostNoMemory: what a manifest or config has is counted before it is
// decoded, and of a config only what is used is kept.
func TestEmptyValuesCostNoMemory(t *testing.T) {
	diffID := strings.Repeat("a", 64)
	config := func(history string) []byte {
		return []byte(`{"os":"linux","rootfs":{"type":"layers","diff_ids":["sha256:` + diffID + `"]},"history":[` + history + `]}`)
	}
	many := func(value string, size int) string {
		return strings.TrimSuffix(strings.Repeat(value+",", size/(len(value)+1)), ",")
	}
	for name, parse := range map[string]func() error{
		"config": func() error { _, err := parseConfig(config(many("{}", maxConfig))); return err },
		"manifest": func() error {
			_, err := parseManifest(ocispec.MediaTypeImageManifest, []byte(`{"schemaVersion":2,"layers":[`+many("{}", 4<<20)+`]}`))
			return err
		},
		"index": func() error {
			_, err := parseManifest(ocispec.MediaTypeImageIndex, []byte(`{"schemaVersion":2,"manifests":[`+many("{}", 4<<20)+`]}`))
			return err
		},
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		err := parse()
		runtime.ReadMemStats(&after)
		if !errors.Is(err, ErrInvalidImage) {
			t.Errorf("%s: got %v, want ErrInvalidImage", name, err)
		}
		if took := after.TotalAlloc - before.TotalAlloc; took > 64<<20 { // the test's own text among it
			t.Errorf("%s: %d MiB were allocated", name, took>>20)
		}
	}
	c, err := parseConfig(config(many(`{"created_by":"RUN \"a\", [b] {c}"}`, 1<<20)))
	if err != nil || len(c.History) > 0 || c.OS != "linux" || len(c.RootFS.DiffIDs) != 1 {
		t.Errorf("of a config with a long history are kept %d entries, OS %q, %d diffIDs: %v", len(c.History), c.OS, len(c.RootFS.DiffIDs), err)
	}
}

// TestMetadataIsNotKept: of an entry's header only what is needed outlives it.
func TestMetadataIsNotKept(t *testing.T) {
	headers := []tar.Header{}
	for i := range 60 {
		headers = append(headers, tar.Header{Typeflag: tar.TypeDir, Name: "d" + strconv.Itoa(i), Mode: 0o755, Format: tar.FormatPAX,
			PAXRecords: map[string]string{"comment": strings.Repeat("x", 1000<<10)}})
	}
	f, s := newFake(t), newStore(t)
	f.image("a", "v1", spec{layers: [][]byte{headersOnly(headers...)}})
	var before runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	most := watchHeap(t)
	pull(t, s, f.host()+"/a:v1")
	if grown := int64(most()) - int64(before.HeapAlloc); grown > 40<<20 {
		t.Errorf("the pull of 60 MiB of comments took %d MiB of heap", grown>>20)
	}
}

// watchHeap returns a function that ends the watch and says how large the live heap was
// at most.
func watchHeap(t *testing.T) func() uint64 {
	t.Helper()
	stop, most := make(chan struct{}), make(chan uint64)
	go func() {
		var peak uint64
		for {
			select {
			case <-stop:
				most <- peak
				return
			default:
			}
			runtime.GC()
			var now runtime.MemStats
			runtime.ReadMemStats(&now)
			peak = max(peak, now.HeapAlloc)
		}
	}()
	return func() uint64 {
		close(stop)
		return <-most
	}
}
