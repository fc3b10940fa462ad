package sandbox

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const passwd = `root:x:0:0:root:/root:/bin/sh
app:x:1000:2000:app:/home:/bin/sh
1234:x:0:0:a root that looks like a number:/:/bin/sh
huge:x:4294967296:0::/:/bin/sh
negative:x:-1:0::/:/bin/sh
short:x:7
`

const group = `root:x:0:
staff:x:50:app,other
wheel:x:60:other,app
app:x:2000:
`

func accounts(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "etc", "passwd"), passwd)
	write(t, filepath.Join(dir, "etc", "group"), group)
	return dir
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestFindUser(t *testing.T) {
	id := func(n int64) *runtimeapi.Int64Value { return &runtimeapi.Int64Value{Value: n} }
	strict := runtimeapi.SupplementalGroupsPolicy_Strict
	type sc = runtimeapi.LinuxContainerSecurityContext
	for _, tt := range []struct {
		name  string
		sc    *sc
		image string
		want  string // uid:gid groups, or part of the error
	}{
		{"nothing is root", nil, "", "0:0 [0]"},
		{"image's name", nil, "app", "1000:2000 [2000 50 60]"},
		{"image's number", nil, "1000", "1000:2000 [2000 50 60]"},
		{"image's number without an account", nil, "77", "77:0 [0]"},
		{"image's name and group", nil, "app:staff", "1000:50 [50 60]"},
		{"image's numbers", nil, "77:88", "77:88 [88]"},
		{"root's group in the image", nil, "1000:0", "1000:0 [0 50 60]"},
		{"digits are a number, not a name", nil, "1234", "1234:0 [0]"},
		{"config before image", &sc{RunAsUser: id(77)}, "app:staff", "77:0 [0]"},
		// As the kubelet does it: the image's user, as the config's.
		{"image's number and group, asked for", &sc{RunAsUser: id(999)}, "999:888", "999:888 [888]"},
		{"image's number with zeros and group, asked for", &sc{RunAsUser: id(999)}, "0999:888", "999:888 [888]"},
		{"image's name and group, asked for", &sc{RunAsUsername: "app"}, "app:staff", "1000:50 [50 60]"},
		{"image's group alone, asked for", &sc{RunAsUser: id(0)}, ":888", "0:888 [888]"},
		{"image's group, another user", &sc{RunAsUser: id(1)}, "999:888", "1:0 [0]"},
		{"image's group, and the config's", &sc{RunAsUser: id(999), RunAsGroup: id(7)}, "999:888", "999:7 [7]"},
		{"image's group that it does not have", &sc{RunAsUser: id(999)}, "999:nothing", "no group"},
		{"config's name", &sc{RunAsUsername: "app"}, "", "1000:2000 [2000 50 60]"},
		{"config's name of digits", &sc{RunAsUsername: "1234"}, "", "1234:0 [0]"},
		{"config's group", &sc{RunAsUser: id(1000), RunAsGroup: id(9)}, "", "1000:9 [9 50 60]"},
		{"merge", &sc{RunAsUser: id(1000), SupplementalGroups: []int64{50, 7}}, "", "1000:2000 [2000 50 60 7]"},
		{"strict", &sc{RunAsUser: id(1000), SupplementalGroups: []int64{7}, SupplementalGroupsPolicy: strict}, "", "1000:2000 [2000 7]"},
		{"2^31", nil, "2147483648", "is not between"},
		{"2^32", nil, "4294967296", "is not between"},
		{"2^64", nil, "18446744073709551616", "is not between"},
		{"2^32 as group", nil, "0:4294967296", "is not between"},
		{"2^32 in the image's passwd", nil, "huge", "is not between"},
		{"negative in the image's passwd", nil, "negative", "is not between"},
		{"a negative number is a name that is not there", nil, "-1", "no user"},
		{"a signed number is a name that is not there", nil, "+0", "no user"},
		{"a short line", nil, "short", "no user"},
		{"unknown name", nil, "nobody", "no user"},
		{"unknown group", nil, "app:nothing", "no group"},
		{"no group after the colon", nil, "app:", "must be USER"},
		{"no user before the colon", nil, ":0", "must be USER"},
		{"a second colon", nil, "app:staff:0", "no group"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root := openDir(t, accounts(t))
			got := ""
			if u, err := findUser(tt.sc, tt.image, root); err != nil {
				got = err.Error()
			} else {
				got = fmt.Sprintf("%d:%d %v", u.UID, u.GID, u.AdditionalGids)
			}
			if got != tt.want && !(strings.HasPrefix(tt.want, "is ") || strings.HasPrefix(tt.want, "no ") || strings.HasPrefix(tt.want, "must ")) || !strings.Contains(got, tt.want) {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

func openDir(t *testing.T, dir string) *os.File {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// An image's /etc/passwd is read inside its root alone, in bounded memory, and
// only if it is a regular file.
func TestHostilePasswd(t *testing.T) {
	outside := t.TempDir()
	write(t, filepath.Join(outside, "secret"), "app:x:0:0:::\n")
	for _, tt := range []struct {
		name  string
		spoil func(etc string) error
		want  string // uid, or part of the error
	}{
		{"symlink inside", func(etc string) error { return replaced(etc, "../usr/lib/passwd") }, "1000"},
		{"absolute symlink", func(etc string) error { return replaced(etc, "/usr/lib/passwd") }, "1000"},
		{"symlink above the root", func(etc string) error { return replaced(etc, "../../../../usr/lib/passwd") }, "1000"},
		{"symlink to the outside", func(etc string) error { return replaced(etc, filepath.Join(outside, "secret")) }, "no user"},
		{"symlink to a device", func(etc string) error { return replaced(etc, "/dev/zero") }, "no user"},
		{"a symlink to itself", func(etc string) error { return replaced(etc, "passwd") }, "symlinks"},
		{"a FIFO", func(etc string) error {
			return firstError(func() error { return os.Remove(filepath.Join(etc, "passwd")) },
				func() error { return syscall.Mkfifo(filepath.Join(etc, "passwd"), 0o644) })
		}, "no regular file"},
		{"a directory", func(etc string) error {
			return firstError(func() error { return os.Remove(filepath.Join(etc, "passwd")) },
				func() error { return os.Mkdir(filepath.Join(etc, "passwd"), 0o755) })
		}, "no regular file"},
		{"huge behind the account", func(etc string) error { return os.Truncate(filepath.Join(etc, "passwd"), 1<<40) }, "1000"},
		{"huge", func(etc string) error {
			return firstError(func() error { return os.Truncate(filepath.Join(etc, "passwd"), 0) },
				func() error { return os.Truncate(filepath.Join(etc, "passwd"), 1<<40) })
		}, "more than"},
		{"none", func(etc string) error { return os.RemoveAll(etc) }, "no user"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := accounts(t)
			write(t, filepath.Join(dir, "usr", "lib", "passwd"), passwd)
			if err := tt.spoil(filepath.Join(dir, "etc")); err != nil {
				t.Fatal(err)
			}
			u, err := findUser(nil, "app", openDir(t, dir))
			got := fmt.Sprint(u.UID)
			if err != nil {
				got = err.Error()
			}
			if !strings.Contains(got, tt.want) {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

// Accounts are read as far as they go, and what lies beyond the bounds is missed by
// nobody but who asks for a name.
func TestManyAccounts(t *testing.T) {
	const strict = runtimeapi.SupplementalGroupsPolicy_Strict
	others := func(n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, "user%d:x:%d:%d:one of many who work here:/home/user%d:/bin/sh\n", i, 10000+i, 10000+i, i)
		}
		return b.String()
	}
	large := others(20_000) + "last:x:77:78:::\n" // more than 1 MiB
	endless := others(maxAccounts) + "last:x:77:78:::\n"
	wide := "staff:x:50:" + strings.Repeat("somebody,", maxAccount/9+1) + "last\n"
	members := "staff:x:50:" + strings.Repeat("somebody,", 20_000) + "last\n"
	type sc = runtimeapi.LinuxContainerSecurityContext
	id := func(n int64) *runtimeapi.Int64Value { return &runtimeapi.Int64Value{Value: n} }
	for _, tt := range []struct {
		name          string
		sc            *sc
		passwd, group string
		image         string
		want          string // uid:gid groups, or part of the error
	}{
		{"root", nil, large, members, "", "0:0 [0]"},
		{"the last of 20,000", nil, large, members, "last", "77:78 [78 50]"},
		{"its number", nil, large, members, "77", "77:78 [78 50]"},
		{"a group of 20,000", nil, large, members, "7:staff", "7:50 [50]"},
		{"beyond the bound, by name", nil, endless, "", "last", "more than"},
		{"beyond the bound, by number", nil, endless, "", "77", "77:0 [0]"},
		{"root before the bound", nil, "root:x:0:0:::\n" + endless, wide, "", "0:0 [0]"},
		{"a line that is too long, by name", nil, large, wide, "last", "more than"},
		{"a line that is too long, by number", nil, large, wide, "77", "77:78 [78]"},
		{"a group in such a file", nil, large, wide, "77:staff", "more than"},
		{"a name that needs no groups", &sc{SupplementalGroupsPolicy: strict}, large, wide, "last", "77:78 [78]"},
		{"numbers that need no accounts", &sc{RunAsUser: id(5), RunAsGroup: id(6), SupplementalGroupsPolicy: strict}, endless, wide, "", "5:6 [6]"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, filepath.Join(dir, "etc", "passwd"), tt.passwd)
			write(t, filepath.Join(dir, "etc", "group"), tt.group)
			u, err := findUser(tt.sc, tt.image, openDir(t, dir))
			got := fmt.Sprintf("%d:%d %v", u.UID, u.GID, u.AdditionalGids)
			if err != nil {
				got = err.Error()
			}
			if got != tt.want && (err == nil || !strings.Contains(got, tt.want)) {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

func replaced(etc, target string) error {
	if err := os.Remove(filepath.Join(etc, "passwd")); err != nil {
		return err
	}
	return os.Symlink(target, filepath.Join(etc, "passwd"))
}
