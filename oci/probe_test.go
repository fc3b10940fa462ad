package oci

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func TestProbe(t *testing.T) {
	for _, test := range []struct {
		name     string
		features string // what it prints when asked; empty: it knows no such command
		version  string // the same
		want     string // Version
		spec     string // OCIVersion
		wrong    string // part of the error
		asked    string
	}{
		{name: "runc", features: `{"ociVersionMax": "1.1.0", "annotations": {"org.opencontainers.runc.version": "1.3.1"}}`,
			version: "it was not needed", want: "runc 1.3.1", spec: "1.1.0", asked: "features"},
		{name: "crun", features: `{"ociVersionMax": "1.1.0+dev", "annotations": {"run.oci.crun.version": "1.21"}}`,
			version: "it was not needed", want: "crun 1.21", spec: "1.1.0+dev", asked: "features"},
		{name: "without features", version: "crun version 1.8.1\ncommit: f8a096be060b22ccd3d5f3ebe44108517fbf6c30\nspec: 1.0.0",
			want: "crun 1.8.1", spec: "1.0.0", asked: "features --version"},
		{name: "features that do not tell the version", features: `{"ociVersionMax": "1.1.0"}`, version: "another version 0.5.3\nspec: 1.0.2",
			want: "another 0.5.3", spec: "1.1.0", asked: "features --version"},
		{name: "features without an OCI version", features: `{"annotations": {"run.oci.crun.version": "1.21"}}`, version: "crun version 1.21\nspec: 1.0.0",
			want: "crun 1.21", spec: "1.0.0", asked: "features --version"},
		{name: "features that are none", features: `hello`, version: "crun version 1.21\nspec: 1.0.0",
			want: "crun 1.21", spec: "1.0.0", asked: "features --version"},
		{name: "newer than we are", features: `{"ociVersionMax": "9.0.0", "annotations": {"run.oci.crun.version": "9"}}`, want: "crun 9", spec: specs.Version, asked: "features"},
		{name: "no OCI runtime", version: "busybox v1.35", wrong: `says no OCI version: "busybox v1.35"`, asked: "features --version"},
		{name: "nothing", wrong: "--version", asked: "features --version"},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			path, asked := filepath.Join(dir, "runtime"), filepath.Join(dir, "asked")
			script := fmt.Sprintf("#!/bin/sh\necho \"$1\" >>%s\ncat %s/\"$1\"\n", asked, dir)
			for name, text := range map[string]string{"runtime": script, "features": test.features, "--version": test.version} {
				if text != "" {
					if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o700); err != nil {
						t.Fatal(err)
					}
				}
			}
			r := &Runtime{Name: "made-up", Path: path}
			err := r.Probe(t.Context())
			if test.wrong == "" && err != nil || test.wrong != "" && (err == nil || !strings.Contains(err.Error(), test.wrong)) {
				t.Errorf("error %v, want one with %q", err, test.wrong)
			}
			if err == nil && (r.Version != test.want || r.OCIVersion != test.spec) {
				t.Errorf("it is %q and takes %q, want %q and %q", r.Version, r.OCIVersion, test.want, test.spec)
			}
			text, err := os.ReadFile(asked)
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(strings.Fields(string(text)), " "); got != test.asked {
				t.Errorf("asked %q, want %q", got, test.asked)
			}
		})
	}
}
