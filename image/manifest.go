package image

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth/image/registry"
	"berth/image/rootfs"
)

// Media types of Docker's image manifest V 2, schema 2 and schema 1.
const (
	dockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerConfig   = "application/vnd.docker.container.image.v1+json"
	dockerLayer    = "application/vnd.docker.image.rootfs.diff.tar"
	dockerForeign  = "application/vnd.docker.image.rootfs.foreign.diff.tar"
	dockerSchema1  = "application/vnd.docker.distribution.manifest.v1+"
)

// octetStream is what some registries call everything, and some old tools a config.
const octetStream = "application/octet-stream"

// genericTypes are names that registries behind plain file servers give to a manifest:
// they say nothing of it, and its own word counts.
var genericTypes = []string{"", "application/json", "text/plain", octetStream}

// manifestTypes are asked for, in order of preference.
var manifestTypes = []string{ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageManifest, dockerList, dockerManifest}

// Bounds of what a manifest may declare.
const (
	maxConfig = 8 << 20
	maxLayer  = 128 << 30 // compressed bytes
)

// manifest is a parsed manifest or index; one of the two halves is set.
type manifest struct {
	MediaType string
	Config    ocispec.Descriptor
	Layers    []ocispec.Descriptor
	Manifests []ocispec.Descriptor // of an index
}

func (m *manifest) isIndex() bool {
	return m.MediaType == ocispec.MediaTypeImageIndex || m.MediaType == dockerList
}

// parseManifest reads a manifest or index (OCI image-spec 1.1, Docker schema 2)
// and refuses what two readers could understand in two ways, and what is no
// container image. mediaType is what the registry calls it, or else what led to it.
// Its errors are ErrInvalidImage.
func parseManifest(mediaType string, data []byte) (*manifest, error) {
	if err := fewValues(data); err != nil {
		return nil, fmt.Errorf("%w: manifest: %w", ErrInvalidImage, err)
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(data, &fields); err != nil {
		return nil, fmt.Errorf("%w: manifest: %w", ErrInvalidImage, err)
	}
	var m struct {
		SchemaVersion int                  `json:"schemaVersion"`
		MediaType     string               `json:"mediaType"`
		ArtifactType  string               `json:"artifactType"`
		Config        ocispec.Descriptor   `json:"config"`
		Layers        []ocispec.Descriptor `json:"layers"`
		Manifests     []ocispec.Descriptor `json:"manifests"`
	}
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, fmt.Errorf("%w: manifest: %w", ErrInvalidImage, err)
	}
	kind, err := manifestType(mediaType, m.MediaType, shape(fields), m.SchemaVersion)
	if err != nil {
		return nil, err
	}
	out := &manifest{MediaType: kind, Config: m.Config, Layers: m.Layers, Manifests: m.Manifests}
	if err := unambiguous(fields, out.isIndex()); err != nil {
		return nil, err
	}
	if out.isIndex() {
		return out, out.checkIndex()
	}
	if !isImage(m.Config.MediaType, m.ArtifactType) {
		return nil, fmt.Errorf("%w: an artifact (%s), not a container image", ErrInvalidImage, firstOf(m.ArtifactType, m.Config.MediaType, "of no type"))
	}
	return out, out.checkManifest()
}

// shape is what the fields of a document make of it, which counts where neither it
// nor the registry says more: OCI documents need not name their own type.
func shape(fields map[string]json.RawMessage) string {
	switch {
	case fields["manifests"] != nil:
		return ocispec.MediaTypeImageIndex
	case fields["config"] != nil:
		return ocispec.MediaTypeImageManifest
	}
	return ""
}

// manifestType settles what the document is: header and body must not differ, unless
// the header is generic.
func manifestType(header, body, shape string, schema int) (string, error) {
	if slices.Contains(genericTypes, header) {
		header = ""
	}
	kind := firstOf(header, body, shape)
	switch {
	case strings.HasPrefix(kind, dockerSchema1) || schema == 1:
		return "", fmt.Errorf("%w: Docker manifest schema 1 is not supported: push the image again with a current tool", ErrInvalidImage)
	case header != "" && body != "" && header != body:
		return "", fmt.Errorf("%w: the registry calls the manifest %s, it calls itself %s", ErrInvalidImage, header, body)
	case !slices.Contains(manifestTypes, kind):
		return "", fmt.Errorf("%w: unknown manifest type %q", ErrInvalidImage, kind)
	case schema != 2:
		return "", fmt.Errorf("%w: manifest of schema version %d", ErrInvalidImage, schema)
	}
	return kind, nil
}

// unambiguous refuses a document that is index and manifest at once
// (GHSA-5j5w-g665-5m35), however the fields are spelt: Go's reader takes any
// case.
func unambiguous(fields map[string]json.RawMessage, index bool) error {
	foreign := []string{"manifests", "fslayers", "history"}
	if index {
		foreign = []string{"layers", "config", "fslayers", "history"}
	}
	seen := map[string]bool{}
	for name := range fields {
		lower := strings.ToLower(name)
		if slices.Contains(foreign, lower) {
			return fmt.Errorf("%w: ambiguous manifest: field %q does not belong to its type", ErrInvalidImage, name)
		}
		if seen[lower] {
			return fmt.Errorf("%w: ambiguous manifest: field %q in two spellings", ErrInvalidImage, name)
		}
		seen[lower] = true
	}
	return nil
}

func (m *manifest) checkIndex() error {
	for _, d := range m.Manifests {
		if err := checkDescriptor(d, registry.MaxManifest); err != nil {
			return err
		}
	}
	return nil
}

func (m *manifest) checkManifest() error {
	if err := checkDescriptor(m.Config, maxConfig); err != nil {
		return err
	}
	if len(m.Layers) > rootfs.MaxLayers {
		return fmt.Errorf("%w: %d layers, the kernel stacks %d", ErrInvalidImage, len(m.Layers), rootfs.MaxLayers)
	}
	for _, d := range m.Layers {
		if err := checkDescriptor(d, maxLayer); err != nil {
			return err
		}
		if err := checkLayerType(d); err != nil {
			return err
		}
	}
	return nil
}

func checkDescriptor(d ocispec.Descriptor, limit int64) error {
	if err := sha256Digest(d.Digest); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalidImage, err)
	}
	if d.Size < 0 || d.Size > limit {
		return fmt.Errorf("%w: %s has a size of %d bytes, at most %d are allowed", ErrInvalidImage, d.Digest, d.Size, limit)
	}
	return nil
}

// checkLayerType accepts a tar, however compressed: the bytes tell.
func checkLayerType(d ocispec.Descriptor) error {
	base, _, _ := strings.Cut(d.MediaType, "+")
	foreign := len(d.URLs) > 0 || strings.HasPrefix(d.MediaType, dockerForeign) ||
		strings.HasPrefix(d.MediaType, "application/vnd.oci.image.layer.nondistributable.")
	switch {
	case foreign:
		return fmt.Errorf("%w: layer %s is foreign: its content is elsewhere than in the registry", ErrInvalidImage, d.Digest)
	case strings.Contains(d.MediaType, "encrypted"):
		return fmt.Errorf("%w: layer %s is encrypted", ErrInvalidImage, d.Digest)
	case base == ocispec.MediaTypeImageLayer, d.MediaType == dockerLayer,
		d.MediaType == dockerLayer+".gzip", d.MediaType == dockerLayer+".zstd":
		return nil
	}
	return fmt.Errorf("%w: layer %s is of type %q, not a tar", ErrInvalidImage, d.Digest, d.MediaType)
}

// isImage tells an image from an artifact: by the type of its config, which may stand
// beside any artifactType, or else by having neither type.
func isImage(configType, artifactType string) bool {
	switch configType {
	case ocispec.MediaTypeImageConfig, dockerConfig:
		return true
	case octetStream: // parseConfig has the last word
		return artifactType == ""
	}
	return false
}

// maxValues is how many values a manifest or a config may have: an empty one of two
// bytes takes a hundred times as much in memory. Real ones have some thousands.
const maxValues = 1 << 16

// fewValues counts before anything is decoded: each value but the first of its array or
// object comes after a comma, and that one after a bracket.
func fewValues(data []byte) error {
	values, quoted := 0, false
	for i := 0; i < len(data); i++ {
		switch c := data[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case !quoted && (c == ',' || c == '{' || c == '['):
			values++
		}
	}
	if values > maxValues {
		return fmt.Errorf("%d values, at most %d are allowed", values, maxValues)
	}
	return nil
}

// parseConfig reads what is used of an image config. The diffIDs are valid.
func parseConfig(data []byte) (ocispec.Image, error) {
	if err := fewValues(data); err != nil {
		return ocispec.Image{}, fmt.Errorf("%w: config: %w", ErrInvalidImage, err)
	}
	var known struct { // without the history, which nobody asks for
		ocispec.Platform
		Config ocispec.ImageConfig `json:"config"`
		RootFS ocispec.RootFS      `json:"rootfs"`
	}
	err := json.Unmarshal(data, &known)
	c := ocispec.Image{Platform: known.Platform, Config: known.Config, RootFS: known.RootFS}
	if err != nil {
		return c, fmt.Errorf("%w: config: %w", ErrInvalidImage, err)
	}
	if c.RootFS.Type != "layers" {
		return c, fmt.Errorf("%w: config: rootfs type %q", ErrInvalidImage, c.RootFS.Type)
	}
	for _, d := range c.RootFS.DiffIDs {
		if err := sha256Digest(d); err != nil {
			return c, fmt.Errorf("%w: config: diffID: %w", ErrInvalidImage, err)
		}
	}
	return c, nil
}

// matchLayers pairs a manifest's layers with the diffIDs of its config.
func matchLayers(m *manifest, c ocispec.Image) error {
	if len(m.Layers) != len(c.RootFS.DiffIDs) {
		return fmt.Errorf("%w: %d layers in the manifest, %d in the config", ErrInvalidImage, len(m.Layers), len(c.RootFS.DiffIDs))
	}
	of := map[digest.Digest]digest.Digest{}
	for i, l := range m.Layers {
		diffID := c.RootFS.DiffIDs[i]
		if other, ok := of[l.Digest]; ok && other != diffID {
			return fmt.Errorf("%w: layer %s has two diffIDs", ErrInvalidImage, l.Digest)
		}
		of[l.Digest] = diffID
	}
	return nil
}

func firstOf(texts ...string) string {
	for _, t := range texts {
		if t != "" {
			return t
		}
	}
	return ""
}
