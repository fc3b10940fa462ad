package image

import (
	"fmt"
	"runtime"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// hostPlatform is this machine's.
func hostPlatform() ocispec.Platform {
	p := ocispec.Platform{OS: runtime.GOOS, Architecture: runtime.GOARCH}
	if p.Architecture != "arm" {
		return p
	}
	p.Variant = "v7"
	var name unix.Utsname
	if unix.Uname(&name) == nil && strings.HasPrefix(unix.ByteSliceToString(name.Machine[:]), "armv6") {
		p.Variant = "v6"
	}
	return p
}

func (s *Store) platform() ocispec.Platform {
	if s.Platform != nil {
		return *s.Platform
	}
	return hostPlatform()
}

// variants that a CPU runs, best first, for the architectures that have them
// (OCI image-spec 1.1, "Platform Variants"). The empty one is the baseline.
var variants = map[string][]string{
	"arm":   {"v8", "v7", "v6", "v5"},
	"arm64": {"v9", "v8"},
	"amd64": {"v4", "v3", "v2", "v1"},
}

// baseline is what an architecture means without a variant.
var baseline = map[string]string{"arm": "v7", "arm64": "v8", "amd64": "v1"}

// rank tells how well an image for p runs on host: 0 is best, -1 is not at all.
func rank(host, p ocispec.Platform) int {
	if p.OS != host.OS || p.Architecture != host.Architecture {
		return -1
	}
	order, ok := variants[host.Architecture]
	if !ok {
		if p.Variant != host.Variant {
			return -1
		}
		return 0
	}
	own := slices.Index(order, firstOf(host.Variant, baseline[host.Architecture]))
	theirs := slices.Index(order, firstOf(p.Variant, baseline[host.Architecture]))
	if own < 0 || theirs < own {
		return -1
	}
	return theirs - own
}

// choose picks the entry of an index for host. Entries without a platform count
// only when no other fits: the image's config has the last word.
func choose(index []ocispec.Descriptor, host ocispec.Platform) (ocispec.Descriptor, error) {
	best, bestRank := -1, 0
	var there []string
	for i, d := range index {
		if !slices.Contains(manifestTypes, d.MediaType) {
			continue
		}
		r := len(variants[host.Architecture]) + 1
		if d.Platform != nil {
			there = append(there, platformName(*d.Platform))
			r = rank(host, *d.Platform)
		}
		if r >= 0 && (best < 0 || r < bestRank) {
			best, bestRank = i, r
		}
	}
	if best < 0 {
		return ocispec.Descriptor{}, fmt.Errorf("%w: no image for %s, there is: %s", ErrInvalidImage, platformName(host), firstOf(strings.Join(there, ", "), "none"))
	}
	return index[best], nil
}

// checkPlatform refuses an image whose config says that it cannot run here.
func checkPlatform(c ocispec.Image, host ocispec.Platform) error {
	if c.OS == "" && c.Architecture == "" || rank(host, c.Platform) >= 0 {
		return nil
	}
	return fmt.Errorf("%w: it is for %s, this machine is %s", ErrInvalidImage, platformName(c.Platform), platformName(host))
}

func platformName(p ocispec.Platform) string {
	name := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		name += "/" + p.Variant
	}
	return name
}
