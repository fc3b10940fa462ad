package image

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// hostPlatform is this machine's.
var hostPlatform = sync.OnceValue(func() ocispec.Platform {
	p := ocispec.Platform{OS: runtime.GOOS, Architecture: runtime.GOARCH}
	switch p.Architecture {
	case "arm":
		p.Variant = "v7"
		var name unix.Utsname
		if unix.Uname(&name) == nil && strings.HasPrefix(unix.ByteSliceToString(name.Machine[:]), "armv6") {
			p.Variant = "v6"
		}
	case "amd64":
		info, _ := os.Open("/proc/cpuinfo") // without it, the baseline
		defer info.Close()
		p.Variant = amd64Level(cpuFlags(info))
	}
	return p
})

// amd64Levels are the microarchitecture levels above the baseline, by the flags of
// /proc/cpuinfo that each adds to the one before (x86-64 psABI, "Micro-Architecture
// Levels").
var amd64Levels = []struct {
	variant string
	flags   []string
}{
	{"v2", []string{"cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"}},
	{"v3", []string{"abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave"}},
	{"v4", []string{"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}},
}

func amd64Level(flags []string) string {
	level := "v1"
	for _, l := range amd64Levels {
		for _, f := range l.flags {
			if !slices.Contains(flags, f) {
				return level
			}
		}
		level = l.variant
	}
	return level
}

// cpuFlags are those of the first CPU in the text of /proc/cpuinfo.
func cpuFlags(info io.Reader) []string {
	lines := bufio.NewScanner(info)
	for lines.Scan() {
		if key, value, _ := strings.Cut(lines.Text(), ":"); strings.TrimSpace(key) == "flags" {
			return strings.Fields(value)
		}
	}
	return nil
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

// spellings of architectures that tools have written, and what OCI calls them
// (image-spec 1.1, "Image Index": the values of GOARCH).
var spellings = map[string]ocispec.Platform{
	"x86_64":  {Architecture: "amd64"},
	"x86-64":  {Architecture: "amd64"},
	"i386":    {Architecture: "386"},
	"i486":    {Architecture: "386"},
	"i586":    {Architecture: "386"},
	"i686":    {Architecture: "386"},
	"x86":     {Architecture: "386"},
	"aarch64": {Architecture: "arm64"},
	"armhf":   {Architecture: "arm", Variant: "v7"},
	"armel":   {Architecture: "arm", Variant: "v6"},
}

// normal spells p as OCI does, and takes host's for what p does not say.
func normal(p, host ocispec.Platform) ocispec.Platform {
	p.OS = firstOf(strings.ToLower(p.OS), host.OS)
	p.Architecture = firstOf(strings.ToLower(p.Architecture), host.Architecture)
	p.Variant = strings.ToLower(p.Variant)
	if spelt, ok := spellings[p.Architecture]; ok {
		p.Architecture, p.Variant = spelt.Architecture, firstOf(p.Variant, spelt.Variant)
	}
	if p.Variant != "" && strings.Trim(p.Variant, "0123456789") == "" {
		p.Variant = "v" + p.Variant
	}
	return p
}

// rank tells how well an image for p runs on host: 0 is best, -1 is not at all.
func rank(host, p ocispec.Platform) int {
	p = normal(p, host)
	if p.OS == host.OS && p.Architecture == "386" && host.Architecture == "amd64" {
		return len(variants["amd64"]) // the kernel runs it, and anything better goes first
	}
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

// choose returns the entries of an index that may be host's, in the order in which
// they are to be tried. If one of them says that it fits, it is the best such alone.
// Otherwise they are those that do not say what they are for: their configs do.
func choose(index []ocispec.Descriptor, host ocispec.Platform) ([]ocispec.Descriptor, error) {
	best, bestRank := -1, 0
	var silent []ocispec.Descriptor
	var there []string
	for i, d := range index {
		switch {
		case !slices.Contains(manifestTypes, d.MediaType):
			continue
		case d.Platform == nil:
			silent = append(silent, d)
			continue
		}
		there = append(there, platformName(*d.Platform))
		r := rank(host, *d.Platform)
		switch {
		case r < 0:
		case d.Platform.OS == "" || d.Platform.Architecture == "":
			silent = append(silent, d)
		case best < 0 || r < bestRank:
			best, bestRank = i, r
		}
	}
	switch {
	case best >= 0:
		return index[best : best+1], nil
	case len(silent) > 0:
		return silent, nil
	}
	return nil, fmt.Errorf("%w: no image for %s, there is: %s", ErrInvalidImage, platformName(host), firstOf(strings.Join(there, ", "), "none"))
}

// checkPlatform refuses an image whose config says that it cannot run here.
func checkPlatform(c ocispec.Image, host ocispec.Platform) error {
	if rank(host, c.Platform) >= 0 {
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
