package image

import (
	"errors"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth/image/registry"
	"berth/image/rootfs"
)

// Errors that callers tell apart.
var (
	// ErrNotFound: no such image in the store, or not in the registry.
	ErrNotFound = registry.ErrNotFound
	// ErrInvalidReference: the text is no image reference.
	ErrInvalidReference = errors.New("invalid image reference")
	// ErrRegistryUnavailable: the registry could not be reached, or did not
	// answer in time.
	ErrRegistryUnavailable = registry.ErrUnavailable
	// ErrUnauthorized: the registry refuses the credential, asks for one, or
	// wants it sent to a host that it is not for.
	ErrUnauthorized = registry.ErrUnauthorized
	// ErrNotSupported: this kernel cannot mount a container's root; the text
	// names the least version that can.
	ErrNotSupported = rootfs.ErrNotSupported
	// ErrListFull: with one more the list of all images could not be received.
	ErrListFull = errors.New("too many images")
	// ErrInvalidImage: what the registry has under the reference is no image
	// that can be run here, and why.
	ErrInvalidImage = errors.New("invalid image")
)

// Image is one image of the store. It is immutable: callers share it.
type Image struct {
	ID      digest.Digest   // digest of the image config; the image's identity
	Tags    []string        // familiar full references, e.g. "docker.io/library/busybox:1.36", sorted
	Digests []string        // e.g. "docker.io/library/busybox@sha256:…", sorted
	Size    int64           // bytes of its layers and config in the store
	Config  ocispec.Image   // parsed image config
	Layers  []digest.Digest // diffIDs, base layer first
	Created time.Time       // when it was pulled

	targets map[string]digest.Digest // by tag: what the registry had under it
}

// Auth is a registry credential as CRI's AuthConfig gives it. Its fields are
// never logged and never sent to another host than the one they are for.
type Auth struct {
	Username, Password string
	Auth               string // base64 of username:password
	ServerAddress      string // if set, the credential is for this host only
	IdentityToken      string // OAuth2 refresh token
	RegistryToken      string // bearer token
}

// Pull asks for one image.
type Pull struct {
	Ref   string // as people write it: "busybox", "host:5000/a/b:tag", "a@sha256:…"
	Auth  Auth   // anonymous if zero
	Watch *Watch // tells how far the pull is; nil: nobody looks
}

// Usage is what the store, or a part of it, takes on its filesystem.
type Usage struct {
	Mountpoint    string // the store's directory
	Bytes, Inodes uint64
	At            time.Time // when it was measured
}
