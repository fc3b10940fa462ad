package rootfs

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Guards against EXDEV, which package managers trip over: a container renames a
// directory that an image has, and finds all of it there, also at the next mount
// and with what it has written since.
func TestRenameAnImagesDirectory(t *testing.T) {
	base := []member{dir("lib", 0o755), dir("lib/deep", 0o700), file("lib/deep/a", "base"), file("lib/gone", ""), dir("tmp", 0o1777), dir("tmp/implied", 0o711)}
	top := []member{file("lib/deep/b", "top"), file("lib/.wh.gone", ""), file("tmp/implied/x", "x")}
	for name, users := range map[string]*Users{"the host's ids": nil, "a user namespace": newUsers(t)} {
		t.Run(name, func(t *testing.T) {
			lower, _ := mustExtract(t, base...)
			upper, tree := mustExtract(t, top...)
			over := t.TempDir()
			o := Overlay{Lower: []string{upper, lower}, Upper: filepath.Join(over, "upper"), Work: filepath.Join(over, "work"), Users: users}
			if err := errors.Join(os.Mkdir(o.Upper, 0o755), os.Mkdir(o.Work, 0o755)); err != nil {
				t.Fatal(err)
			}
			id := 0
			if users != nil {
				id = int(users.UIDs.Host)
				if err := os.Chown(o.Upper, id, int(users.GIDs.Host)); err != nil {
					t.Fatal(err)
				}
			}
			stack := []Layer{{Root: upper, Implied: tree.Implied}, {Root: lower}}
			root := attach(t, o, stack)
			if err := errors.Join(os.Rename(root+"/lib", root+"/old"), os.Rename(root+"/old/deep", root+"/shallow"), os.Rename(root+"/tmp", root+"/old/tmp"),
				os.Mkdir(root+"/lib", 0o755), os.WriteFile(root+"/lib/new", []byte("new"), 0o600), os.WriteFile(root+"/shallow/b", []byte("changed"), 0o600)); err != nil {
				t.Fatal(err)
			}
			for _, when := range []string{"at once", "at the next mount"} {
				for dir, want := range map[string]string{"": "lib old shallow", "lib": "new", "old": "tmp", "shallow": "a b", "old/tmp/implied": "x"} {
					if got := names(t, filepath.Join(root, dir)); got != want {
						t.Errorf("%s, %q has %q, want %q", when, dir, got, want)
					}
				}
				if a, b := readFile(t, root+"/shallow/a"), readFile(t, root+"/shallow/b"); a != "base" || b != "changed" {
					t.Errorf("%s, the files are %q and %q", when, a, b)
				}
				if info, err := os.Stat(root + "/old/tmp/implied"); err != nil || info.Mode().Perm() != 0o711 {
					t.Errorf("%s, the implied directory is %v, %v", when, info, err)
				}
				if err := unix.Unmount(root, 0); err != nil {
					t.Fatal(err)
				}
				root = attach(t, o, stack)
			}
			if got := names(t, filepath.Join(lower, "lib")); got != "deep gone" {
				t.Errorf("the image's own layer has %q", got)
			}
		})
	}
}

// The root of a user namespace may rename what is its own.
func TestRenameByTheRootOfAUserNamespace(t *testing.T) {
	u := newUsers(t)
	root, _ := mountedFor(t, u, []member{dir("lib", 0o755), file("lib/f", "f")}, []member{file("lib/g", "g")})
	passable(t, root)
	cmd := exec.Command("sh", "-c", `stat -c %i lib && mv lib moved && stat -c %i moved && cat moved/f moved/g`)
	cmd.Dir = root
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: u.UIDs.Host, Gid: u.GIDs.Host}}
	out, err := cmd.CombinedOutput()
	lines := strings.Fields(string(out))
	if err != nil || len(lines) != 3 || lines[0] != lines[1] || lines[2] != "fg" { // a copy would be another inode
		t.Errorf("%v: %q", err, out)
	}
}

// A layer's own word about redirects does not count: it could show directories of
// other layers that are hidden, or whose modes keep others out.
func TestLayersRedirectNothing(t *testing.T) {
	redirecting := dir("public", 0o755)
	redirecting.PAXRecords = map[string]string{paxXattr + "trusted.overlay.redirect": "/secret", paxXattr + "trusted.overlay.metacopy": ""}
	root, _ := mounted(t, []member{dir("secret", 0o700), file("secret/key", "key"), dir("public", 0o755)}, []member{file(".wh.secret", ""), redirecting})
	if got := names(t, filepath.Join(root, "public")); got != "" {
		t.Errorf("the layer shows %q", got)
	}
}
