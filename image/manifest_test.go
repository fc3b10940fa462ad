package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
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
		{"served as JSON", "application/json", goodManifest(), ""},
		{"index served as text", "text/plain", goodIndex(), ""},
		{"docker list served as bytes", octetStream, with(goodIndex(), "mediaType", dockerList), ""},
		{"config of bytes", oci, with(goodManifest(), "config", descriptor(octetStream)), ""},
		{"image with an artifact type", oci, with(goodManifest(), "artifactType", "application/vnd.example"), ""},
		{"annotations and subject", oci, with(with(goodManifest(), "annotations", doc{"a": "b"}), "subject", descriptor("x")), ""},
		{"docker layers in an OCI manifest", oci, withLayer("mediaType", dockerLayer+".gzip"), ""},

		{"no media type at all", "", with(goodManifest(), "mediaType", nil), ""},
		{"index served as JSON, without a type of its own", "application/json", with(goodIndex(), "mediaType", nil), ""},
		{"of no media type and of both kinds", "text/plain", with(with(goodManifest(), "mediaType", nil), "manifests", []any{}), "ambiguous"},
		{"of no media type and of no kind", "", doc{"schemaVersion": 2}, "unknown manifest type"},
		{"served as JSON, without a type of its own", "application/json", with(goodManifest(), "mediaType", nil), ""},
		{"schema 1 served as JSON", "application/json", doc{"schemaVersion": 1, "fsLayers": []any{}}, "schema 1 is not supported"},
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
		{"artifact with a config of bytes", oci, with(with(goodManifest(), "artifactType", "application/vnd.example"), "config", descriptor(octetStream)), "artifact"},
		{"artifact", oci, with(with(goodManifest(), "artifactType", "application/vnd.example"), "config", descriptor("application/vnd.example.config")), "artifact"},
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
		host, there, want string // there is separated by blanks, "-" has no platform; so is want, "" is none
	}{
		{"linux/amd64", "linux/arm64 linux/amd64", "linux/amd64"},
		{"linux/amd64", "windows/amd64 unknown/unknown linux/s390x", ""},
		{"linux/amd64", "windows/386 linux/i386", "linux/i386"},
		{"linux/amd64/v3", "linux/386 linux/amd64", "linux/amd64"},
		{"linux/386", "linux/amd64", ""},
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
		{"linux/amd64", "linux/arm64 - -", "- -"},
		{"linux/amd64", "windows/x86_64 linux/x86_64", "linux/x86_64"},
		{"linux/amd64", "Linux/AMD64", "Linux/AMD64"},
		{"linux/386", "linux/x86_64 linux/i386", "linux/i386"},
		{"linux/arm64", "linux/aarch64/8", "linux/aarch64/8"},
		{"linux/arm/v6", "linux/armhf linux/armel", "linux/armel"},
		{"linux/amd64/v4", "linux/amd64 linux/amd64/v3 linux/x86-64/v2", "linux/amd64/v3"},
		{"linux/amd64", "/amd64 linux/ windows/ /arm64", "/amd64 linux/"},
		{"linux/amd64", "/amd64 linux/amd64", "linux/amd64"},
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
		var names []string
		for _, d := range got {
			names = append(names, strings.Fields(test.there)[d.Size])
		}
		if name := strings.Join(names, " "); name != test.want || (err == nil) != (name != "") {
			t.Errorf("%s of %q: got %q, %v, want %q", test.host, test.there, name, err, test.want)
		}
	}
}

// Images as they are found in registries, that must not be refused or mistaken.
func TestPullWhatRegistriesHave(t *testing.T) {
	other := ocispec.Platform{OS: "linux", Architecture: "s390x"}
	bare := func(d ocispec.Descriptor) ocispec.Descriptor { d.Platform = nil; return d }
	for name, setUp := range map[string]func(f *fake) ocispec.Descriptor{
		"architecture as uname says it": func(f *fake) ocispec.Descriptor {
			return f.image("a", "v1", spec{layers: [][]byte{files("f", "fits")}, platform: ocispec.Platform{OS: "Linux", Architecture: unameOf[runtime.GOARCH]}})
		},
		"no operating system": func(f *fake) ocispec.Descriptor {
			return f.raw("a", "v1", `{"architecture":"`+runtime.GOARCH+`"`)
		},
		"no architecture": func(f *fake) ocispec.Descriptor { return f.raw("a", "v1", `{"os":"linux"`) },
		"a bare index whose second entry fits": func(f *fake) ocispec.Descriptor {
			fits := f.image("a", "", spec{layers: [][]byte{files("f", "fits")}})
			f.index("a", "v1", ocispec.MediaTypeImageIndex, bare(f.image("a", "", spec{platform: other})), bare(fits))
			return fits
		},
		"a bare index in a bare index": func(f *fake) ocispec.Descriptor {
			fits := f.image("a", "", spec{layers: [][]byte{files("f", "fits")}})
			not := f.index("a", "", ocispec.MediaTypeImageIndex, bare(f.image("a", "", spec{platform: other})))
			f.index("a", "v1", dockerList, not, f.index("a", "", ocispec.MediaTypeImageIndex, bare(fits)))
			return fits
		},
		"a manifest of an index without a type of its own, served as JSON": func(f *fake) ocispec.Descriptor {
			fits := f.raw("a", "", `{"os":"linux"`)
			f.index("a", "v1", ocispec.MediaTypeImageIndex, fits)
			f.serveAs("application/json", fits)
			return fits
		},
	} {
		t.Run(name, func(t *testing.T) {
			f, s := newFake(t), newStore(t)
			want := setUp(f)
			img, err := s.Pull(t.Context(), Pull{Ref: f.host() + "/a:v1"})
			if err != nil {
				t.Fatal(err)
			}
			var m ocispec.Manifest
			check(json.Unmarshal(f.manifests["a@"+want.Digest.String()].data, &m))
			if img.ID != m.Config.Digest {
				t.Errorf("pulled %s, want %s", img.ID, m.Config.Digest)
			}
		})
	}
}

// unameOf is what uname(1) calls an architecture.
var unameOf = map[string]string{"amd64": "x86_64", "arm64": "aarch64", "386": "i686"}

// raw puts an image without layers into the registry, whose config begins as given and
// whose manifest has no media type.
func (f *fake) raw(name, tag, config string) ocispec.Descriptor {
	data := []byte(config + `,"rootfs":{"type":"layers","diff_ids":[]}}`)
	m := with(goodManifest(), "mediaType", nil)
	m["layers"] = []any{}
	m["config"] = doc{"mediaType": ocispec.MediaTypeImageConfig, "digest": f.blob(data), "size": len(data)}
	return f.manifest(name, tag, ocispec.MediaTypeImageManifest, m)
}

// serveAs changes the content type of what is served under a digest.
func (f *fake) serveAs(mediaType string, d ocispec.Descriptor) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for ref, m := range f.manifests {
		if strings.HasSuffix(ref, d.Digest.String()) {
			m.mediaType = mediaType
			f.manifests[ref] = m
		}
	}
}

// An index of entries that say nothing is not a licence to fetch without end.
func TestBareIndexIsBounded(t *testing.T) {
	f, s := newFake(t), newStore(t)
	var all []ocispec.Descriptor
	for i := range 200 {
		d := f.image("a", "", spec{platform: ocispec.Platform{OS: "linux", Architecture: "s390x"}, salt: fmt.Sprint(i)})
		d.Platform = nil
		all = append(all, d)
	}
	f.index("a", "v1", ocispec.MediaTypeImageIndex, all...)
	_, err := s.Pull(t.Context(), Pull{Ref: f.host() + "/a:v1"})
	if !errors.Is(err, ErrInvalidImage) || !strings.Contains(err.Error(), "do not say what platform") {
		t.Errorf("got %v", err)
	}
	if n := f.count("/manifests/"); n > maxFetched {
		t.Errorf("%d manifests were fetched, at most %d should be", n, maxFetched)
	}
	s.empty(t)
}

func TestAMD64Level(t *testing.T) {
	const v2 = "cx16 lahf_lm popcnt pni sse4_1 sse4_2 ssse3"
	const v3 = v2 + " abm avx avx2 bmi1 bmi2 f16c fma movbe xsave"
	for flags, want := range map[string]string{
		"": "v1", "fpu sse2": "v1", v2: "v2", v3: "v3", "avx512f " + v3: "v3", v3 + " avx512f avx512bw avx512cd avx512dq avx512vl": "v4",
		"avx avx2 bmi1 bmi2 f16c fma abm movbe xsave": "v1",
	} {
		info := "processor\t: 0\nflags\t\t: " + flags + "\nvmx flags\t: none\n\nprocessor\t: 1\nflags\t: other\n"
		if got := amd64Level(cpuFlags(strings.NewReader(info))); got != want {
			t.Errorf("%q: %s, want %s", flags, got, want)
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
