package sandbox

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

type profile = runtimeapi.SecurityProfile

const (
	byDefault  = runtimeapi.SecurityProfile_RuntimeDefault
	unconfined = runtimeapi.SecurityProfile_Unconfined
	localhost  = runtimeapi.SecurityProfile_Localhost
)

func TestPrivilegedNeedsAPrivilegedPod(t *testing.T) {
	for _, privileged := range []bool{false, true} {
		c := podConfig("a")
		podLinux(c).SecurityContext.Privileged = privileged
		p := testPods().newPod(newID(), RunRequest{Config: c})
		want := securityField + "privileged"
		if privileged {
			want = ""
		}
		refused(t, p.checkSecurity(&ctrSC{Privileged: true}), want)
	}
}

// Profiles are judged when a container is created, with what the kernel lacks
// told apart from what is wrong.
func TestProfiles(t *testing.T) {
	full := node{seccomp: true, appArmor: true, selinux: true}
	const se, ar, sel = securityField + "seccomp", securityField + "apparmor", securityField + "selinux_options"
	for _, tt := range []struct {
		name  string
		n     node
		sc    *ctrSC
		field string // "": accepted
		err   error
	}{
		{"nothing", node{}, &ctrSC{}, "", nil},
		{"unconfined", node{}, &ctrSC{Seccomp: &profile{ProfileType: unconfined}, Apparmor: &profile{ProfileType: unconfined}}, "", nil},
		{"apparmor default on any kernel", node{}, &ctrSC{Apparmor: &profile{}, ApparmorProfile: "runtime/default"}, "", nil},
		{"seccomp default", full, &ctrSC{Seccomp: &profile{}}, "", nil},
		{"seccomp of the node", full, &ctrSC{Seccomp: &profile{ProfileType: localhost, LocalhostRef: "/a"}}, "", nil},
		{"no seccomp", node{}, &ctrSC{Seccomp: &profile{}}, se, ErrNoSeccomp},
		{"no seccomp, deprecated", node{}, &ctrSC{SeccompProfilePath: "docker/default"}, se + "_profile_path", ErrNoSeccomp},
		{"no seccomp, privileged", node{}, &ctrSC{Privileged: true, Seccomp: &profile{}}, "", nil},
		{"no seccomp, deprecated and overruled", node{}, &ctrSC{Seccomp: &profile{ProfileType: unconfined}, SeccompProfilePath: "runtime/default"}, "", nil},
		{"relative seccomp", full, &ctrSC{Seccomp: &profile{ProfileType: localhost, LocalhostRef: "a.json"}}, se + ".localhost_ref", nil},
		{"seccomp with ..", full, &ctrSC{Seccomp: &profile{ProfileType: localhost, LocalhostRef: "/a/../b"}}, se + ".localhost_ref", nil},
		{"seccomp without a name", full, &ctrSC{Seccomp: &profile{ProfileType: localhost}}, se + ".localhost_ref", nil},
		{"seccomp default with a name", full, &ctrSC{Seccomp: &profile{LocalhostRef: "/a"}}, se + ".localhost_ref", nil},
		{"unknown seccomp", full, &ctrSC{Seccomp: &profile{ProfileType: 3}}, se + ".profile_type", nil},
		{"unknown seccomp, privileged", full, &ctrSC{Privileged: true, Seccomp: &profile{ProfileType: 3}}, se + ".profile_type", nil},
		{"deprecated", full, &ctrSC{SeccompProfilePath: "unconfined"}, "", nil},
		{"deprecated, of the node", full, &ctrSC{SeccompProfilePath: "localhost//var/p.json"}, "", nil},
		{"deprecated, relative", full, &ctrSC{SeccompProfilePath: "localhost/p.json"}, se + "_profile_path", nil},
		{"deprecated, unknown", full, &ctrSC{SeccompProfilePath: "default"}, se + "_profile_path", nil},
		{"no apparmor", node{}, &ctrSC{Apparmor: &profile{ProfileType: localhost, LocalhostRef: "a"}}, ar, ErrNoAppArmor},
		{"no apparmor, deprecated", node{}, &ctrSC{ApparmorProfile: "localhost/a"}, ar + "_profile", ErrNoAppArmor},
		{"apparmor", full, &ctrSC{Apparmor: &profile{ProfileType: localhost, LocalhostRef: "a"}}, "", nil},
		{"apparmor without a name", full, &ctrSC{Apparmor: &profile{ProfileType: localhost}}, ar + ".localhost_ref", nil},
		{"apparmor without a name, deprecated", full, &ctrSC{ApparmorProfile: "localhost/"}, ar + "_profile", nil},
		{"apparmor, unknown", full, &ctrSC{ApparmorProfile: "a"}, ar + "_profile", nil},
		{"no selinux", node{}, &ctrSC{SelinuxOptions: &runtimeapi.SELinuxOption{Type: "t"}}, "", nil},
		{"no selinux, privileged", node{}, &ctrSC{Privileged: true, SelinuxOptions: &runtimeapi.SELinuxOption{Type: "t"}}, "", nil},
		{"empty selinux", node{}, &ctrSC{SelinuxOptions: &runtimeapi.SELinuxOption{}}, "", nil},
		{"selinux", full, &ctrSC{SelinuxOptions: &runtimeapi.SELinuxOption{Type: "spc_t", Level: "s0:c1,c2"}}, "", nil},
		{"selinux without a level", full, &ctrSC{SelinuxOptions: &runtimeapi.SELinuxOption{Type: "t"}}, sel + ".level", nil},
		{"selinux with two parts in one", full, &ctrSC{SelinuxOptions: &runtimeapi.SELinuxOption{Type: "t:s0", Level: "s0"}}, sel + ".type", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			pods := testPods()
			pods.node = tt.n
			c := podConfig("a")
			podLinux(c).SecurityContext.Privileged = true
			err := pods.newPod(newID(), RunRequest{Config: c}).checkSecurity(tt.sc)
			refused(t, err, tt.field)
			if tt.err != nil && !errors.Is(err, tt.err) {
				t.Errorf("%v is not %v", err, tt.err)
			}
		})
	}
}

// The default profile lets a process use the capabilities that it has.
func TestDefaultSeccompFollowsCapabilities(t *testing.T) {
	allows := func(rules *specs.LinuxSeccomp, call string) bool {
		return slices.ContainsFunc(rules.Syscalls, func(s specs.LinuxSyscall) bool {
			return s.Action == specs.ActAllow && len(s.Args) == 0 && slices.Contains(s.Names, call)
		})
	}
	for _, tt := range []struct {
		name     string
		sc       *ctrSC
		call     string
		confined bool
		allowed  bool
	}{
		{"default", &ctrSC{Seccomp: &profile{}}, "mount", true, false},
		{"with the capability", &ctrSC{Seccomp: &profile{}, Capabilities: &runtimeapi.Capability{AddCapabilities: []string{"SYS_ADMIN"}}}, "mount", true, true},
		{"with all, without it", &ctrSC{Seccomp: &profile{}, Capabilities: &runtimeapi.Capability{AddCapabilities: []string{"ALL"}, DropCapabilities: []string{"SYS_ADMIN"}}}, "mount", true, false},
		{"chroot by default", &ctrSC{SeccompProfilePath: "runtime/default"}, "chroot", true, true},
		{"chroot without capabilities", &ctrSC{SeccompProfilePath: "runtime/default", Capabilities: &runtimeapi.Capability{DropCapabilities: []string{"ALL"}}}, "chroot", true, false},
		{"nothing", &ctrSC{}, "", false, false},
		{"unconfined", &ctrSC{Seccomp: &profile{ProfileType: unconfined}, SeccompProfilePath: "runtime/default"}, "", false, false},
		{"privileged", &ctrSC{Seccomp: &profile{}, Privileged: true}, "", false, false},
	} {
		caps, err := capabilities(tt.sc, testFacts().Capabilities)
		if err != nil {
			t.Fatal(err)
		}
		rules, err := seccompRules(tt.sc, caps.Bounding, nil)
		if err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		if (rules != nil) != tt.confined {
			t.Errorf("%s: rules %v", tt.name, rules)
		}
		if rules != nil && allows(rules, tt.call) != tt.allowed {
			t.Errorf("%s: %s allowed: %v", tt.name, tt.call, !tt.allowed)
		}
	}
}

// A profile with a slip in it confines less than its author thinks.
func TestSeccompProfilesAreReadStrictly(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "profile.json")
	const good = `{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mount"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}]}`
	for _, tt := range []struct {
		name string
		make func() error
		want string // part of the reason; "": accepted
	}{
		{"good", func() error { return os.WriteFile(path, []byte(good), 0o600) }, ""},
		{"good, as docker writes it", func() error {
			return os.WriteFile(path, []byte(`{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1, "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}],
				"syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW", "comment": "x", "includes": {"minKernel": "4.8", "caps": ["CAP_KILL"]}}]}`), 0o600)
		}, ""},
		{"a link", func() error { return os.Symlink("real.json", path) }, ""},
		{"none", func() error { return nil }, "no such file"},
		{"a directory", func() error { return os.Mkdir(path, 0o700) }, "no regular file"},
		{"a FIFO", func() error { return syscall.Mkfifo(path, 0o600) }, "no regular file"},
		{"a device", func() error { return os.Symlink("/dev/zero", path) }, "no regular file"},
		{"huge", func() error { return os.WriteFile(path, []byte(good+strings.Repeat(" ", maxSeccompProfile)), 0o600) }, "larger than"},
		{"empty", func() error { return os.WriteFile(path, nil, 0o600) }, "parse"},
		{"no object", func() error { return os.WriteFile(path, []byte("[]"), 0o600) }, "parse"},
		{"nothing in it", func() error { return os.WriteFile(path, []byte("{}"), 0o600) }, "defaultAction"},
		{"unknown action", func() error { return os.WriteFile(path, []byte(strings.Replace(good, "ALLOW", "ALOW", 1)), 0o600) }, "defaultAction"},
		{"unknown action of a call", func() error { return os.WriteFile(path, []byte(strings.Replace(good, "ERRNO", "ERNO", 1)), 0o600) }, "syscalls[0].action"},
		{"unknown field", func() error {
			return os.WriteFile(path, []byte(strings.Replace(good, "syscalls", "syscals", 1)), 0o600)
		}, "unknown field"},
		{"unknown field of a call", func() error { return os.WriteFile(path, []byte(strings.Replace(good, "names", "nmes", 1)), 0o600) }, "unknown field"},
		{"a call without a name", func() error { return os.WriteFile(path, []byte(strings.Replace(good, `"mount"`, "", 1)), 0o600) }, "syscalls[0]"},
		{"two objects", func() error { return os.WriteFile(path, []byte(good+good), 0o600) }, "something follows"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			write(t, filepath.Join(dir, "real.json"), good)
			if err := os.RemoveAll(path); err != nil {
				t.Fatal(err)
			}
			if err := tt.make(); err != nil {
				t.Fatal(err)
			}
			sc := &ctrSC{Seccomp: &profile{ProfileType: localhost, LocalhostRef: path}}
			text, err := readSeccomp(sc)
			if err == nil {
				_, err = seccompRules(sc, []string{"CAP_KILL"}, text)
			}
			if tt.want == "" {
				refused(t, err, "")
				return
			}
			refused(t, err, securityField+"seccomp.localhost_ref")
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v does not say %q", err, tt.want)
			}
		})
	}
}

// To CRI, a container that asks for no AppArmor profile asks for the default one.
func TestAppArmorByDefault(t *testing.T) {
	for name, tt := range map[string]struct {
		sc   *ctrSC
		want runtimeapi.SecurityProfile_ProfileType
	}{
		"nothing":               {&ctrSC{}, runtimeapi.SecurityProfile_RuntimeDefault},
		"default":               {&ctrSC{Apparmor: &profile{}}, runtimeapi.SecurityProfile_RuntimeDefault},
		"unconfined":            {&ctrSC{Apparmor: &profile{ProfileType: unconfined}}, unconfined},
		"deprecated unconfined": {&ctrSC{ApparmorProfile: "unconfined"}, unconfined},
	} {
		if c, err := appArmorOf(tt.sc); err != nil || c.GetProfileType() != tt.want {
			t.Errorf("%s: %v, %v, want %v", name, c.GetProfileType(), err, tt.want)
		}
	}
}

func TestLoadedAppArmorProfiles(t *testing.T) {
	const list = "berth-default (enforce)\n/usr/bin/man (1) (complain)\nother (unconfined)\n"
	for name, want := range map[string]bool{"berth-default": true, "/usr/bin/man (1)": true, "/usr/bin/man": false, "berth": false, "": false} {
		if got := profileListed(list, name); got != want {
			t.Errorf("%q: %v", name, got)
		}
	}
}

// A container sees the node's devices by their names there, but has its own
// terminals and shared memory.
func TestNodeDevices(t *testing.T) {
	all, err := nodeDevices()
	if err != nil {
		t.Fatal(err)
	}
	find := func(path string) int {
		return slices.IndexFunc(all, func(d specs.LinuxDevice) bool { return d.Path == path })
	}
	if i := find("/dev/null"); i < 0 || all[i].Type != "c" || all[i].Major != 1 || all[i].Minor != 3 || *all[i].FileMode != 0o666 {
		t.Errorf("/dev/null: %v", all)
	}
	for _, d := range all {
		if strings.HasPrefix(d.Path, "/dev/pts/") || strings.HasPrefix(d.Path, "/dev/shm/") || d.Path == "/dev/ptmx" {
			t.Errorf("%s is the container's own", d.Path)
		}
	}
}

// Both the pod and the container may give groups, and either of them may forbid
// the image's.
func TestGroupsOfThePod(t *testing.T) {
	id := &runtimeapi.Int64Value{Value: 1000}
	const merge, strict = runtimeapi.SupplementalGroupsPolicy_Merge, runtimeapi.SupplementalGroupsPolicy_Strict
	for _, tt := range []struct {
		name                   string
		container, pod         []int64
		containersRule, podsOf runtimeapi.SupplementalGroupsPolicy
		want                   []uint32
	}{
		{"neither", nil, nil, merge, merge, []uint32{2000, 50, 60}},
		{"the pod's", nil, []int64{7}, merge, merge, []uint32{2000, 50, 60, 7}},
		{"both", []int64{8, 7}, []int64{7, 9}, merge, merge, []uint32{2000, 50, 60, 8, 7, 9}},
		{"strict container", []int64{8}, []int64{9}, strict, merge, []uint32{2000, 8, 9}},
		{"strict pod", []int64{8}, []int64{9}, merge, strict, []uint32{2000, 8, 9}},
	} {
		sc := withPodGroups(
			&ctrSC{RunAsUser: id, SupplementalGroups: tt.container, SupplementalGroupsPolicy: tt.containersRule},
			&podSC{SupplementalGroups: tt.pod, SupplementalGroupsPolicy: tt.podsOf})
		u, err := findUser(sc, "", openDir(t, accounts(t)))
		if err != nil || !slices.Equal(u.AdditionalGids, tt.want) {
			t.Errorf("%s: %v, %v, want %v", tt.name, u.AdditionalGids, err, tt.want)
		}
	}
}
