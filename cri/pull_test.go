package cri

import (
	"context"
	"net/http"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/cri/admin"
	"berth/test/expect"
	"berth/test/registry"
)

// The admin service's pull shows a layer on its way, whole in the end, and the
// id that PullImage returns.
func TestPullShowsItsProgress(t *testing.T) {
	n := newNode(t)
	ref := n.registry.Host() + "/web:a"
	layer := registry.Layer(t, registry.File("name", 0o644, "web"))
	n.registry.Push(t, "web", layer, ocispec.ImageConfig{}, "a")
	seen := make(chan struct{}) // the client has seen the layer wait for its bytes
	n.registry.Misbehave(func(w http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, digest.FromBytes(layer).String()) {
			select {
			case <-seen:
			case <-r.Context().Done():
			}
		}
		return false
	})
	req := &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}}
	var last admin.PullProgress
	looked := false
	id, err := admin.Pull(t.Context(), n.conn, req, func(p admin.PullProgress) {
		if !looked && len(p.Layers) == 1 {
			looked = true
			if l := p.Layers[0]; l.Phase != admin.Downloading || l.Bytes != 0 || l.Total == 0 || p.Image != "" {
				t.Errorf("on its way: %+v", p)
			}
			close(seen)
		}
		last = p
	})
	if err != nil {
		t.Fatal(err)
	}
	if img := n.imageStatus(t, ref); !looked || id == "" || id != img.GetId() || last.Image != id {
		t.Errorf("looked %v, id %q, last message %+v", looked, id, last)
	}
	if len(last.Layers) != 1 || last.Layers[0].Phase != admin.Done || last.Layers[0].Bytes != last.Layers[0].Total {
		t.Errorf("ends with %+v", last.Layers)
	}
	if _, err := admin.Pull(t.Context(), n.conn, req, func(p admin.PullProgress) { last = p }); err != nil {
		t.Fatal(err)
	}
	if last.Layers[0].Phase != admin.Present {
		t.Errorf("pulled again it ends with %+v", last.Layers)
	}
}

func TestPullByAdminFails(t *testing.T) {
	n := newNode(t)
	pull := func(ctx context.Context, ref string) error {
		_, err := admin.Pull(ctx, n.conn, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}}, func(admin.PullProgress) {})
		return err
	}
	expect.Code(t, "no name", pull(t.Context(), ""), codes.InvalidArgument, "image.image")
	expect.Code(t, "an image that is not there", pull(t.Context(), n.registry.Host()+"/none:1"), codes.NotFound, "none:1")

	// A client that goes ends the pull.
	n.registry.Push(t, "web", registry.Layer(t, registry.File("name", 0o644, "web")), ocispec.ImageConfig{}, "a")
	ctx, cancel := context.WithCancel(t.Context())
	gone := make(chan struct{})
	n.registry.Misbehave(func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/blobs/") {
			cancel()
			<-r.Context().Done()
			close(gone)
			return true
		}
		return false
	})
	expect.Code(t, "a client that goes", pull(ctx, n.registry.Host()+"/web:a"), codes.Canceled)
	<-gone
}
