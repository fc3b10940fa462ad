package registry

import (
	"context"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"

	"github.com/opencontainers/go-digest"
)

// MaxManifest is how large a manifest or index may be, in bytes
// (distribution-spec 1.1, "Pushing Manifests": at least 4 MiB).
const MaxManifest = 4 << 20

// Manifest is a manifest or index as the registry sent it.
type Manifest struct {
	MediaType string // of the answer's Content-Type, without parameters; "" if it has none
	Digest    digest.Digest
	Bytes     []byte
}

// Manifest fetches a manifest by tag or digest. With a digest, the bytes are
// proven by it. accept are the media types that the caller understands.
func (r *Repository) Manifest(ctx context.Context, ref string, accept []string) (Manifest, error) {
	header := http.Header{"Accept": {strings.Join(accept, ", ")}}
	p := newPace(r.Timeout, r.MinRate)
	for failed := 0; ; {
		m, err := r.manifestOnce(ctx, p, ref, header)
		if err == nil {
			return m, nil
		}
		if err := p.again(ctx, err, &failed); err != nil {
			return Manifest{}, err
		}
	}
}

func (r *Repository) manifestOnce(ctx context.Context, p *pace, ref string, header http.Header) (Manifest, error) {
	resp, err := r.get(ctx, p, "manifests/"+ref, header, []int{http.StatusOK})
	if err != nil {
		return Manifest{}, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, MaxManifest+1))
	if err != nil {
		return Manifest{}, transportError(ctx, err)
	}
	if len(data) > MaxManifest {
		return Manifest{}, fmt.Errorf("manifest %s is larger than %d bytes", ref, MaxManifest)
	}
	m := Manifest{Digest: digest.FromBytes(data), Bytes: data}
	if strings.Contains(ref, ":") && m.Digest.String() != ref {
		return Manifest{}, fmt.Errorf("registry lies about manifest %s: the digest of what it sent is %s", ref, m.Digest)
	}
	if said := resp.Header.Get("Docker-Content-Digest"); said != "" && said != m.Digest.String() {
		return Manifest{}, fmt.Errorf("registry lies about manifest %s: it says %s, the digest of what it sent is %s", ref, Quote(said), m.Digest)
	}
	// A header that is no media type says as little as none.
	if kind, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type")); err == nil {
		m.MediaType = kind
	}
	return m, nil
}
