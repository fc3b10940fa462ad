package conformance

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/test/expect"
	"berth/test/leak"
	"berth/test/registry"
)

// onOneNode runs test on a node with runc: images know nothing of runtimes.
func onOneNode(t *testing.T, test func(t *testing.T, n *node)) {
	t.Helper()
	leak.NeedRoot(t)
	leak.NeedTool(t, "runc")
	test(t, start(t, "runc"))
}

func (n *node) image(t *testing.T, ref string) *runtimeapi.Image {
	t.Helper()
	resp, err := n.images.ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
	if err != nil {
		t.Fatal(err)
	}
	return resp.GetImage()
}

func (n *node) listImages(t *testing.T, ref string) []*runtimeapi.Image {
	t.Helper()
	req := &runtimeapi.ListImagesRequest{}
	if ref != "" {
		req.Filter = &runtimeapi.ImageFilter{Image: &runtimeapi.ImageSpec{Image: ref}}
	}
	resp, err := n.images.ListImages(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	return resp.GetImages()
}

func (n *node) removeImage(t *testing.T, ref string) {
	t.Helper()
	if _, err := n.images.RemoveImage(t.Context(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}}); err != nil {
		t.Fatal(err)
	}
}

func (n *node) tryPull(ctx context.Context, ref string) error {
	_, err := n.images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
	return err
}

func (n *node) push(t *testing.T, name string, config ocispec.ImageConfig, tags ...string) (byDigest string) {
	t.Helper()
	return n.registry.Push(t, name, registry.Layer(t, registry.File("name", 0o644, name)), config, tags...)
}

func TestImageHasOneIdentity(t *testing.T) {
	onOneNode(t, func(t *testing.T, n *node) {
		byDigest := n.push(t, "team/web", ocispec.ImageConfig{}, "a", "b", "c")
		tag := n.registry.Host() + "/team/web:"
		if n.image(t, tag+"a") != nil {
			t.Error("an image that was not pulled has a status")
		}
		id := n.pull(t, byDigest)
		for _, name := range []string{"a", "b", "c"} {
			if got := n.pull(t, tag+name); got != id {
				t.Errorf("pulled by %s: %s, by digest: %s", name, got, id)
			}
		}
		first := n.image(t, id)
		if first.GetId() != id || first.GetSize() == 0 {
			t.Errorf("image %v", first)
		}
		if want := []string{tag + "a", tag + "b", tag + "c"}; !slices.Equal(first.GetRepoTags(), want) {
			t.Errorf("tags %q, want %q", first.GetRepoTags(), want)
		}
		if want := []string{byDigest}; !slices.Equal(first.GetRepoDigests(), want) {
			t.Errorf("digests %q, want %q", first.GetRepoDigests(), want)
		}
		for _, ref := range []string{tag + "a", tag + "b", byDigest, strings.TrimPrefix(id, "sha256:")} {
			if got := n.image(t, ref); !proto.Equal(got, first) {
				t.Errorf("by %s: %v", ref, got)
			}
			if got := n.listImages(t, ref); len(got) != 1 || !proto.Equal(got[0], first) {
				t.Errorf("listed by %s: %v", ref, got)
			}
		}
		n.killDaemon(t)
		n.startDaemon(t)
		if got := n.image(t, tag+"a"); !proto.Equal(got, first) {
			t.Errorf("after a restart: %v", got)
		}
		n.removeImage(t, tag+"b")
		n.removeImage(t, tag+"b")
		if left := n.listImages(t, ""); len(left) != 0 {
			t.Errorf("removal by one tag left %v", left)
		}
	})
}

func TestImageUser(t *testing.T) {
	onOneNode(t, func(t *testing.T, n *node) {
		for user, want := range map[string]struct {
			uid  int64 // -1: none
			name string
		}{
			"1000": {1000, ""}, "1000:1000": {1000, ""}, "web": {-1, "web"}, "web:web": {-1, "web"}, "": {0, ""}, "4294967296": {-1, "4294967296"},
		} {
			name := "user-" + strings.ReplaceAll(user, ":", "-") + "x"
			n.push(t, name, ocispec.ImageConfig{User: user}, "1")
			img := n.image(t, n.pull(t, n.registry.Host()+"/"+name+":1"))
			uid := int64(-1)
			if img.GetUid() != nil {
				uid = img.GetUid().GetValue()
			}
			if uid != want.uid || img.GetUsername() != want.name {
				t.Errorf("user %q: uid %d, username %q", user, uid, img.GetUsername())
			}
		}
	})
}

func TestPullsOfOneImageJoin(t *testing.T) {
	onOneNode(t, func(t *testing.T, n *node) {
		var mu sync.Mutex
		fetched := map[string]int{}
		n.registry.Misbehave(func(_ http.ResponseWriter, r *http.Request) bool {
			mu.Lock()
			defer mu.Unlock()
			if r.Method == http.MethodGet {
				fetched[r.URL.Path]++
			}
			return false
		})
		var pulls sync.WaitGroup
		for range 6 {
			pulls.Go(func() {
				if err := n.tryPull(t.Context(), n.busybox); err != nil {
					t.Error(err)
				}
			})
		}
		pulls.Wait()
		mu.Lock()
		defer mu.Unlock()
		for path, times := range fetched {
			if strings.Contains(path, "/blobs/") && times > 6 {
				t.Errorf("%s was fetched %d times", path, times)
			}
		}
		if images := n.listImages(t, ""); len(images) != 1 {
			t.Errorf("listed %v", images)
		}
	})
}

func TestPullDeadline(t *testing.T) {
	onOneNode(t, func(t *testing.T, n *node) {
		short, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		expect.Code(t, "a pull of a millisecond", n.tryPull(short, n.busybox), codes.DeadlineExceeded)
		n.pull(t, n.busybox)
	})
}

// A pull that fails says why, shows nothing, keeps nothing, and may be tried
// again.
func TestPullFailures(t *testing.T) {
	onOneNode(t, func(t *testing.T, n *node) {
		blob := func(r *http.Request) bool { return strings.Contains(r.URL.Path, "/blobs/") }
		down := httptest.NewServer(nil)
		nobody := strings.TrimPrefix(down.URL, "http://")
		down.Close()
		for _, test := range []struct {
			name, ref string
			fault     func(w http.ResponseWriter, r *http.Request) bool
			code      codes.Code
			prefix    string
		}{
			{"nobody listens", nobody + "/busybox:1", nil, codes.Unknown, "RegistryUnavailable"},
			{"the registry is broken", n.busybox, func(w http.ResponseWriter, _ *http.Request) bool {
				w.WriteHeader(http.StatusServiceUnavailable)
				return true
			}, codes.Unknown, "RegistryUnavailable"},
			{"no such image", n.registry.Host() + "/none:1", nil, codes.NotFound, ""},
			{"no such tag", n.registry.Host() + "/busybox:2", nil, codes.NotFound, ""},
			{"a blob is another", n.busybox, func(w http.ResponseWriter, r *http.Request) bool {
				if blob(r) {
					http.ServeContent(w, r, "", time.Time{}, strings.NewReader(strings.Repeat("x", 4<<20)))
				}
				return blob(r)
			}, codes.Unknown, ""},
			{"a blob ends early", n.busybox, func(w http.ResponseWriter, r *http.Request) bool {
				if !blob(r) {
					return false
				}
				w.Header().Set("Content-Length", "1000000")
				w.Write([]byte("x"))
				return true
			}, codes.Unknown, ""},
		} {
			n.registry.Misbehave(test.fault)
			err := n.tryPull(t.Context(), test.ref)
			expect.Code(t, test.name, err, test.code)
			if text := status.Convert(err).Message(); !strings.HasPrefix(text, test.prefix) || !strings.Contains(text, strings.Split(test.ref, "/")[0]) {
				t.Errorf("%s: %q", test.name, text)
			}
			if images := n.listImages(t, ""); len(images) != 0 {
				t.Errorf("%s: listed %v", test.name, images)
			}
			for _, dir := range []string{"ingest", "layers/sha256", "images"} {
				if left, _ := filepath.Glob(filepath.Join(n.data, dir, "*")); len(left) != 0 {
					t.Errorf("%s: left in the store: %v", test.name, left)
				}
			}
		}
		n.registry.Misbehave(nil)
		n.pull(t, n.busybox)
	})
}

func TestImageFsInfo(t *testing.T) {
	onOneNode(t, func(t *testing.T, n *node) {
		used := func() uint64 {
			t.Helper()
			resp, err := n.images.ImageFsInfo(t.Context(), &runtimeapi.ImageFsInfoRequest{})
			if err != nil {
				t.Fatal(err)
			}
			fs := resp.GetImageFilesystems()[0]
			if fs.GetUsedBytes() == nil || fs.GetTimestamp() == 0 {
				t.Errorf("usage %v", fs)
			}
			if _, err := os.Stat(fs.GetFsId().GetMountpoint()); err != nil {
				t.Errorf("cAdvisor could not look at it: %v", err)
			}
			return fs.GetUsedBytes().GetValue()
		}
		empty := used()
		n.pull(t, n.busybox)
		if full := used(); full <= empty {
			t.Errorf("%d bytes without an image, %d with one", empty, full)
		}
		n.removeImage(t, n.busybox)
		eventually(t, "the space is free again", func() bool { return used() == empty })
	})
}
