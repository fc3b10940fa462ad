package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// doc is a manifest as the tests change it: JSON objects by field.
type doc = map[string]any

func descriptor(mediaType string) doc {
	return doc{"mediaType": mediaType, "digest": digest.FromString(mediaType).String(), "size": 10}
}

func goodManifest() doc {
	return doc{
		"schemaVersion": 2,
		"mediaType":     ocispec.MediaTypeImageManifest,
		"config":        descriptor(ocispec.MediaTypeImageConfig),
		"layers":        []any{descriptor(ocispec.MediaTypeImageLayerGzip)},
	}
}

func goodIndex() doc {
	return doc{
		"schemaVersion": 2,
		"mediaType":     ocispec.MediaTypeImageIndex,
		"manifests":     []any{descriptor(ocispec.MediaTypeImageManifest)},
	}
}

func with(d doc, field string, value any) doc {
	d[field] = value
	if value == nil {
		delete(d, field)
	}
	return d
}

func withLayer(field string, value any) doc {
	layer := descriptor(ocispec.MediaTypeImageLayerGzip)
	layer[field] = value
	return with(goodManifest(), "layers", []any{layer})
}

func TestParseManifest(t *testing.T) {
	const oci, index = ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex
	tests := []struct {
		name   string
		header string
		doc    any
		want   string // part of the error; "" if it is in order
	}{
		{"manifest", oci, goodManifest(), ""},
		{"index", index, goodIndex(), ""},
		{"docker manifest", dockerManifest, with(with(goodManifest(), "mediaType", dockerManifest), "config", descriptor(dockerConfig)), ""},
		{"docker list", dockerList, with(goodIndex(), "mediaType", dockerList), ""},
		{"no media type in the body", oci, with(goodManifest(), "mediaType", nil), ""},
		{"no media type in the header", "", goodManifest(), ""},
		{"annotations and subject", oci, with(with(goodManifest(), "annotations", doc{"a": "b"}), "subject", descriptor("x")), ""},
		{"docker layers in an OCI manifest", oci, withLayer("mediaType", dockerLayer+".gzip"), ""},

		{"no media type at all", "", with(goodManifest(), "mediaType", nil), "unknown manifest type"},
		{"header differs", index, goodManifest(), "calls itself"},
		{"header of no manifest", "text/html", with(goodManifest(), "mediaType", nil), "unknown manifest type"},
		{"both index and manifest", oci, with(goodManifest(), "manifests", []any{}), "ambiguous"},
		{"both, the other way", index, with(goodIndex(), "layers", []any{}), "ambiguous"},
		{"both, in another case", oci, with(goodManifest(), "Manifests", []any{}), "ambiguous"},
		{"layers twice", oci, with(goodManifest(), "Layers", []any{}), "ambiguous"},
		{"index with a config", index, with(goodIndex(), "config", descriptor(ocispec.MediaTypeImageConfig)), "ambiguous"},
		{"schema 1", dockerSchema1 + "prettyjws", doc{"schemaVersion": 1, "fsLayers": []any{}}, "schema 1 is not supported"},
		{"schema 1 called schema 2", dockerManifest, doc{"schemaVersion": 1, "fsLayers": []any{}, "history": []any{}}, "schema 1 is not supported"},
		{"schema 1 in schema 2", dockerManifest, with(with(with(goodManifest(), "mediaType", dockerManifest), "config", descriptor(dockerConfig)), "fsLayers", []any{}), "ambiguous"},
		{"schema 3", oci, with(goodManifest(), "schemaVersion", 3), "schema version 3"},
		{"artifact", oci, with(goodManifest(), "artifactType", "application/vnd.example"), "artifact"},
		{"empty config", oci, with(goodManifest(), "config", descriptor(ocispec.MediaTypeEmptyJSON)), "artifact"},
		{"config of a chart", oci, with(goodManifest(), "config", descriptor("application/vnd.cncf.helm.config.v1+json")), "helm"},
		{"no config", oci, with(goodManifest(), "config", nil), "artifact"},
		{"layer of a chart", oci, withLayer("mediaType", "application/vnd.cncf.helm.chart.content.v1.tar+gzip"), "not a tar"},
		{"foreign layer", oci, withLayer("mediaType", dockerForeign+".gzip"), "foreign"},
		{"non-distributable layer", oci, withLayer("mediaType", "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"), "foreign"},
		{"layer with URLs", oci, withLayer("urls", []string{"https://example.com/layer"}), "foreign"},
		{"encrypted layer", oci, withLayer("mediaType", "application/vnd.oci.image.layer.v1.tar+gzip+encrypted"), "encrypted"},
		{"digest that climbs", oci, withLayer("digest", "sha256:../../../etc/passwd"), "digest"},
		{"short digest", oci, withLayer("digest", "sha256:abcd"), "digest"},
		{"upper case digest", oci, withLayer("digest", "sha256:"+strings.Repeat("A", 64)), "digest"},
		{"no digest", oci, withLayer("digest", ""), "digest"},
		{"sha512 digest", oci, withLayer("digest", "sha512:"+strings.Repeat("a", 128)), "only sha256"},
		{"unknown algorithm", oci, withLayer("digest", "md5:"+strings.Repeat("a", 32)), "digest"},
		{"negative size", oci, withLayer("size", -1), "size"},
		{"huge layer", oci, withLayer("size", int64(1)<<60), "size"},
		{"huge config", oci, with(goodManifest(), "config", with(descriptor(ocispec.MediaTypeImageConfig), "size", 9<<20)), "size"},
		{"bad digest in an index", index, with(goodIndex(), "manifests", []any{with(descriptor(oci), "digest", "../x")}), "digest"},
		{"too many layers", oci, with(goodManifest(), "layers", manyLayers(501)), "501 layers"},
		{"no JSON", oci, []byte("<html>"), "manifest"},
		{"a list", oci, []byte("[]"), "manifest"},
		{"null", oci, []byte("null"), "schema"},
		{"layers of another kind", oci, with(goodManifest(), "layers", "x"), "manifest"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			data, ok := test.doc.([]byte)
			if !ok {
				data = must(json.Marshal(test.doc))
			}
			_, err := parseManifest(test.header, data)
			switch {
			case test.want == "" && err != nil:
				t.Errorf("refused: %v", err)
			case test.want != "" && !errors.Is(err, ErrInvalidImage):
				t.Errorf("got %v, want ErrInvalidImage", err)
			case test.want != "" && !strings.Contains(err.Error(), test.want):
				t.Errorf("got %v, want it to say %q", err, test.want)
			}
		})
	}
}

func manyLayers(n int) []any {
	var all []any
	for range n {
		all = append(all, descriptor(ocispec.MediaTypeImageLayerGzip))
	}
	return all
}

// TestPullRefuses: what only shows when manifest and config are seen together.
func TestPullRefuses(t *testing.T) {
	f, s := newFake(t), newStore(t)
	arm := ocispec.Platform{OS: "linux", Architecture: "s390x"}
	image := func(change func(*ocispec.Image), config string) {
		if config == "" {
			c := ocispec.Image{RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromBytes(files())}}}
			change(&c)
			config = string(must(json.Marshal(c)))
		}
		layer := f.blob(gzipped(files()))
		m := goodManifest()
		m["layers"] = []any{doc{"mediaType": ocispec.MediaTypeImageLayerGzip, "digest": layer, "size": len(gzipped(files()))}}
		m["config"] = doc{"mediaType": ocispec.MediaTypeImageConfig, "digest": f.blob([]byte(config)), "size": len(config)}
		f.manifest("a", "v1", ocispec.MediaTypeImageManifest, m)
	}
	tests := []struct {
		name  string
		setUp func()
		want  string
	}{
		{"another platform", func() { f.image("a", "v1", spec{platform: arm}) }, "it is for linux/s390x"},
		{"index without this platform", func() {
			f.index("a", "v1", ocispec.MediaTypeImageIndex, f.image("a", "", spec{platform: arm}))
		}, "there is: linux/s390x"},
		{"empty index", func() { f.index("a", "v1", ocispec.MediaTypeImageIndex) }, "there is: none"},
		{"index that lies about a type", func() {
			d := f.image("a", "", spec{})
			d.MediaType = dockerManifest
			f.index("a", "v1", ocispec.MediaTypeImageIndex, d)
		}, "the index calls"},
		{"index in index in index", func() {
			d := f.image("a", "", spec{})
			for range maxNesting {
				d = f.index("a", "v1", ocispec.MediaTypeImageIndex, d)
			}
		}, "nested deeper"},
		{"diffIDs missing", func() { image(func(c *ocispec.Image) { c.RootFS.DiffIDs = nil }, "") }, "1 layers in the manifest, 0 in the config"},
		{"diffID that climbs", func() { image(func(c *ocispec.Image) { c.RootFS.DiffIDs[0] = "sha256:../../x" }, "") }, "diffID"},
		{"another diffID", func() { image(func(c *ocispec.Image) { c.RootFS.DiffIDs[0] = digest.FromString("x") }, "") }, "inflates to"},
		{"rootfs of another type", func() { image(func(c *ocispec.Image) { c.RootFS.Type = "zfs" }, "") }, "rootfs type"},
		{"config is no JSON", func() { image(nil, "nonsense") }, "config"},
		{"config deep as hell", func() { image(nil, strings.Repeat("[", 1<<20)) }, "config"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			test.setUp()
			_, err := s.Pull(context.Background(), Pull{Ref: f.host() + "/a:v1"})
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want it to say %q", err, test.want)
			}
			s.empty(t)
		})
	}
}

func TestChoosePlatform(t *testing.T) {
	p := func(text string) ocispec.Platform {
		parts := strings.Split(text+"//", "/")
		return ocispec.Platform{OS: parts[0], Architecture: parts[1], Variant: parts[2]}
	}
	tests := []struct {
		host, there, want string // there is separated by blanks, "-" has no platform; want "" is none
	}{
		{"linux/amd64", "linux/arm64 linux/amd64", "linux/amd64"},
		{"linux/amd64", "windows/amd64 unknown/unknown linux/386", ""},
		{"linux/amd64", "linux/amd64/v3 linux/amd64", "linux/amd64"},
		{"linux/amd64", "linux/amd64/v3", ""},
		{"linux/amd64/v3", "linux/amd64 linux/amd64/v2 linux/amd64/v4", "linux/amd64/v2"},
		{"linux/arm64", "linux/arm64/v8", "linux/arm64/v8"},
		{"linux/arm64", "linux/arm64/v9 linux/arm64", "linux/arm64"},
		{"linux/arm64/v8", "linux/arm/v7", ""},
		{"linux/arm/v7", "linux/arm/v5 linux/arm/v6 linux/arm/v8", "linux/arm/v6"},
		{"linux/arm/v6", "linux/arm/v7 linux/arm", ""},
		{"linux/arm/v7", "linux/arm", "linux/arm"},
		{"linux/riscv64", "linux/riscv64", "linux/riscv64"},
		{"linux/riscv64", "linux/riscv64/rva22", ""},
		{"linux/amd64", "- linux/amd64", "linux/amd64"},
		{"linux/amd64", "linux/arm64 -", "-"},
	}
	for _, test := range tests {
		var index []ocispec.Descriptor
		for i, name := range strings.Fields(test.there) {
			d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Size: int64(i)}
			if name != "-" {
				platform := p(name)
				d.Platform = &platform
			}
			index = append(index, d)
		}
		got, err := choose(index, p(test.host))
		name := ""
		if err == nil {
			name = strings.Fields(test.there)[got.Size]
		}
		if name != test.want {
			t.Errorf("%s of %q: got %q, want %q", test.host, test.there, name, test.want)
		}
	}
}

// FuzzParseManifest: what is accepted is of a known type, has valid digests and
// sizes within bounds, and is one thing only.
func FuzzParseManifest(f *testing.F) {
	for _, d := range []doc{goodManifest(), goodIndex(), with(goodManifest(), "manifests", []any{}), withLayer("digest", "sha256:../.."), withLayer("size", -1)} {
		f.Add(fmt.Sprint(d["mediaType"]), must(json.Marshal(d)))
	}
	f.Add("", []byte(`{"schemaVersion":2,"layers":null,"LAYERS":[]}`))
	f.Fuzz(func(t *testing.T, mediaType string, data []byte) {
		m, err := parseManifest(mediaType, data)
		if err != nil {
			if !errors.Is(err, ErrInvalidImage) {
				t.Fatalf("error of another kind: %v", err)
			}
			return
		}
		if m.isIndex() && (len(m.Layers) > 0 || m.Config.Digest != "") || !m.isIndex() && len(m.Manifests) > 0 {
			t.Fatalf("two things at once: %+v", m)
		}
		all := append(append([]ocispec.Descriptor{}, m.Layers...), m.Manifests...)
		if !m.isIndex() {
			all = append(all, m.Config)
		}
		for _, d := range all {
			if sha256Digest(d.Digest) != nil || d.Size < 0 || d.Size > maxLayer || strings.ContainsAny(d.Digest.Encoded(), "./") {
				t.Fatalf("accepted %+v", d)
			}
		}
	})
}
