package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
)

const (
	layerType    = "application/vnd.oci.image.layer.v1.tar+gzip"
	configType   = "application/vnd.oci.image.config.v1+json"
	manifestType = "application/vnd.oci.image.manifest.v1+json"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("mkimage: ")
	busybox := flag.String("busybox", "/bin/busybox", "static busybox `FILE`")
	program := flag.String("program", "", "static `FILE` that is all of the image, instead of a busybox")
	flag.Parse()
	reference := regexp.MustCompile(`^([^/]+)/(.+):([^:/]+)$`).FindStringSubmatch(flag.Arg(0))
	if reference == nil {
		log.Fatalf("%q is not HOST:PORT/NAME:TAG", flag.Arg(0))
	}
	var layer []byte
	var command []string
	var err error
	if *program != "" {
		layer, command, err = programLayer(*program)
	} else {
		layer, command, err = busyboxLayer(*busybox)
	}
	if err != nil {
		log.Fatal(err)
	}
	digest, err := push(registry{host: reference[1], name: reference[2]}, reference[3], layer, command)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(digest)
}

// push makes the image and returns the digest of its manifest.
func push(r registry, tag string, layer []byte, command []string) (string, error) {
	blob, err := compress(layer)
	if err != nil {
		return "", err
	}
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH,
		"os":           "linux",
		"config": map[string]any{
			"Env": []string{"PATH=/bin"},
			"Cmd": command,
		},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{digest(layer)}},
	})
	if err != nil {
		return "", err
	}
	manifest, err := json.Marshal(map[string]any{
		"schemaVersion": 2,
		"mediaType":     manifestType,
		"config":        descriptor(configType, config),
		"layers":        []any{descriptor(layerType, blob)},
	})
	if err != nil {
		return "", err
	}
	for _, b := range [][]byte{blob, config} {
		if err := r.pushBlob(b); err != nil {
			return "", err
		}
	}
	return digest(manifest), r.pushManifest(tag, manifest)
}

// programLayer is an image's only layer, a tar, and what the image executes.
func programLayer(path string) (layer []byte, command []string, err error) {
	program, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, err
	}
	var buf bytes.Buffer
	t := tarball{w: tar.NewWriter(&buf)}
	t.file(filepath.Base(path), 0o755, program)
	err = t.close()
	return buf.Bytes(), []string{"/" + filepath.Base(path)}, err
}

// busyboxLayer is the same for an image of all of busybox.
func busyboxLayer(busybox string) (layer []byte, command []string, err error) {
	program, err := os.ReadFile(busybox)
	if err != nil {
		return nil, nil, err
	}
	applets, err := exec.Command(busybox, "--list").Output()
	if err != nil {
		return nil, nil, fmt.Errorf("list applets of %s: %w", busybox, err)
	}
	var buf bytes.Buffer
	t := tarball{w: tar.NewWriter(&buf)}
	for _, dir := range []string{"bin", "dev", "etc", "proc", "root", "sys", "var", "www"} {
		t.dir(dir, 0o755)
	}
	t.dir("tmp", 0o1777)
	t.file("bin/busybox", 0o755, program)
	for _, applet := range strings.Fields(string(applets)) {
		if applet != "busybox" {
			t.link("bin/"+applet, "busybox")
		}
	}
	t.file("etc/passwd", 0o644, []byte("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n"))
	t.file("etc/group", 0o644, []byte("root:x:0:\nnogroup:x:65534:\n"))
	t.file("www/index.html", 0o644, []byte("Hello from a pod.\n"))
	err = t.close()
	return buf.Bytes(), []string{"httpd", "-f", "-p", "80", "-h", "/www"}, err
}

// tarball keeps the first error. Its entries belong to root and have no time.
type tarball struct {
	w   *tar.Writer
	err error
}

func (t *tarball) add(h tar.Header, content []byte) {
	if t.err != nil {
		return
	}
	h.Size = int64(len(content))
	if t.err = t.w.WriteHeader(&h); t.err == nil {
		_, t.err = t.w.Write(content)
	}
}

func (t *tarball) close() error {
	if t.err == nil {
		t.err = t.w.Close()
	}
	return t.err
}

func (t *tarball) dir(name string, mode int64) {
	t.add(tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: mode}, nil)
}

func (t *tarball) file(name string, mode int64, content []byte) {
	t.add(tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode}, content)
}

func (t *tarball) link(name, target string) {
	t.add(tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}, nil)
}

func compress(data []byte) ([]byte, error) {
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	if _, err := w.Write(data); err != nil {
		return nil, err
	}
	err := w.Close()
	return buf.Bytes(), err
}

func digest(data []byte) string {
	return fmt.Sprintf("sha256:%x", sha256.Sum256(data))
}

func descriptor(mediaType string, data []byte) map[string]any {
	return map[string]any{"mediaType": mediaType, "digest": digest(data), "size": len(data)}
}

// registry is one repository of a registry that speaks the OCI distribution
// protocol.
type registry struct{ host, name string }

func (r registry) url(path string) string {
	return "http://" + r.host + "/v2/" + r.name + path
}

// pushBlob uploads in one piece: a session is opened by POST, and ended by PUT
// at the location that it answers.
func (r registry) pushBlob(data []byte) error {
	session, err := send(http.MethodPost, r.url("/blobs/uploads/"), "", nil)
	if err != nil {
		return err
	}
	location, err := session.Location()
	if err != nil {
		return fmt.Errorf("open an upload: %w", err)
	}
	query := location.Query()
	query.Set("digest", digest(data))
	location.RawQuery = query.Encode()
	_, err = send(http.MethodPut, location.String(), "application/octet-stream", data)
	return err
}

func (r registry) pushManifest(tag string, manifest []byte) error {
	_, err := send(http.MethodPut, r.url("/manifests/"+url.PathEscape(tag)), manifestType, manifest)
	return err
}

// send is an error for every answer but 2xx. The answer's body is read and
// closed.
func send(method, url, mediaType string, body []byte) (*http.Response, error) {
	req, err := http.NewRequest(method, url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if mediaType != "" {
		req.Header.Set("Content-Type", mediaType)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, url, err)
	}
	if resp.StatusCode/100 != 2 {
		return nil, fmt.Errorf("%s %s: %s: %s", method, url, resp.Status, bytes.TrimSpace(text))
	}
	return resp, nil
}
