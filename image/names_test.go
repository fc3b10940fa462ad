package image

import (
	"testing"

	"github.com/opencontainers/go-digest"
)

// Guards against statuses that show bare hashes: the kubelet makes containers by
// the image's id, and people, scanners and updaters need the name and the repo
// digest.
func TestNamesOfAnImage(t *testing.T) {
	const (
		index, manifest = "sha256:1111111111111111111111111111111111111111111111111111111111111111", "sha256:2222222222222222222222222222222222222222222222222222222222222222"
		id              = "sha256:abcdefabcdefabcdefabcdefabcdefabcdefabcdefabcdefabcdefabcdefabcd"
	)
	tagged := &Image{
		ID:      id,
		Tags:    []string{"docker.io/library/abcd:latest", "docker.io/library/busybox:1.36", "mirror:5000/box:1"},
		Digests: []string{"docker.io/library/busybox@" + index, "docker.io/library/busybox@" + manifest, "mirror:5000/box@" + index},
		targets: map[string]digest.Digest{"docker.io/library/busybox:1.36": manifest, "mirror:5000/box:1": index},
	}
	untagged := &Image{ID: id, Digests: tagged.Digests[2:]}
	bare := &Image{ID: id}
	for _, tt := range []struct {
		what         string
		img          *Image
		asked        string
		name, digest string
	}{
		{"a tag", tagged, "docker.io/library/busybox:1.36", "docker.io/library/busybox:1.36", "docker.io/library/busybox@" + manifest},
		{"a short name", tagged, "busybox:1.36", "busybox:1.36", "docker.io/library/busybox@" + manifest},
		{"another registry's", tagged, "mirror:5000/box:1", "mirror:5000/box:1", "mirror:5000/box@" + index},
		{"a digest", tagged, "busybox@" + index, "busybox@" + index, "docker.io/library/busybox@" + index},
		{"a tag that has moved", tagged, "busybox:1.35", "busybox:1.35", "docker.io/library/busybox@" + index},
		{"a name that it never had", tagged, "else.where/x:1", "else.where/x:1", "docker.io/library/busybox@" + index},
		{"no reference", tagged, "UPPER CASE", "UPPER CASE", "docker.io/library/busybox@" + index},
		{"the id", tagged, id, "docker.io/library/abcd:latest", "docker.io/library/busybox@" + index},
		{"the beginning of the id", tagged, "abcdef", "docker.io/library/abcd:latest", "docker.io/library/busybox@" + index},
		{"a name that looks like an id", tagged, "abcd", "abcd", "docker.io/library/busybox@" + index},
		{"nothing", tagged, "", "docker.io/library/abcd:latest", "docker.io/library/busybox@" + index},
		{"the id of an image without a tag", untagged, id, "mirror:5000/box@" + index, "mirror:5000/box@" + index},
		{"a tag that is gone", untagged, "mirror:5000/box:1", "mirror:5000/box:1", "mirror:5000/box@" + index},
		{"the id of an image without a reference", bare, id, id, id},
		{"a name of an image without a reference", bare, "busybox", "busybox", id},
	} {
		if name, digested := tt.img.Names(tt.asked); name != tt.name || digested != tt.digest {
			t.Errorf("%s: %q is shown as %q, %q; want %q, %q", tt.what, tt.asked, name, digested, tt.name, tt.digest)
		}
	}
}
