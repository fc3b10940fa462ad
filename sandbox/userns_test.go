package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/oci"
	"berth/test/leak"
)

type (
	userNS    = runtimeapi.UserNamespace
	idMapping = runtimeapi.IDMapping
)

// usersOf is a pod's user namespace with these ids.
func usersOf(host, length uint32) *userNS {
	m := []*idMapping{{HostId: host, Length: length}}
	return &userNS{Mode: nsPod, Uids: m, Gids: m}
}

func TestValidateUserNamespaceOfAPod(t *testing.T) {
	const at = "linux.security_context.namespace_options."
	uids := func(m ...*idMapping) *nsOpt {
		return &nsOpt{UsernsOptions: &userNS{Uids: m, Gids: usersOf(1<<16, 1<<16).Gids}}
	}
	gids := func(m ...*idMapping) *nsOpt {
		return &nsOpt{UsernsOptions: &userNS{Uids: usersOf(1<<16, 1<<16).Uids, Gids: m}}
	}
	good := &idMapping{HostId: 1 << 16, Length: 1 << 16}
	for _, tt := range []struct {
		field string // "": accepted
		ns    *nsOpt
	}{
		{"", &nsOpt{UsernsOptions: usersOf(1<<16, 1<<16)}},
		{"", &nsOpt{UsernsOptions: usersOf(1000, 100000), Pid: nsContainer}},
		{"", &nsOpt{UsernsOptions: usersOf(1<<32-2, 1)}},
		{"", &nsOpt{UsernsOptions: usersOf(1, 1<<32-2)}},
		{"", &nsOpt{UsernsOptions: &userNS{Mode: nsNode}}},
		{"", &nsOpt{UsernsOptions: &userNS{Mode: nsNode}, Ipc: nsNode, Pid: nsNode}},
		{at + "userns_options.mode", &nsOpt{UsernsOptions: &userNS{Mode: nsContainer}}},
		{at + "userns_options.mode", &nsOpt{UsernsOptions: &userNS{Mode: nsTarget, Uids: []*idMapping{good}, Gids: []*idMapping{good}}}},
		{at + "userns_options.mode", &nsOpt{UsernsOptions: &userNS{Mode: 7}}},
		{at + "userns_options.uids", &nsOpt{UsernsOptions: &userNS{Mode: nsNode, Uids: []*idMapping{good}}}},
		{at + "userns_options.gids", &nsOpt{UsernsOptions: &userNS{Mode: nsNode, Gids: []*idMapping{good}}}},
		{at + "userns_options.uids", &nsOpt{UsernsOptions: &userNS{}}},
		{at + "userns_options.uids", uids()},
		{at + "userns_options.gids", gids()},
		{at + "userns_options.uids", uids(good, &idMapping{ContainerId: 1 << 16, HostId: 1 << 20, Length: 1})},
		{at + "userns_options.gids", gids(good, good)}, // overlapping
		{at + "userns_options.uids[0].container_id", uids(&idMapping{ContainerId: 1, HostId: 1 << 16, Length: 1 << 16})},
		{at + "userns_options.gids[0].container_id", gids(&idMapping{ContainerId: 1<<32 - 1, HostId: 1 << 16, Length: 1 << 16})},
		{at + "userns_options.uids[0].host_id", uids(&idMapping{Length: 1 << 16})},
		{at + "userns_options.uids[0].length", uids(&idMapping{HostId: 1 << 16})},
		{at + "userns_options.gids[0]", gids(&idMapping{HostId: 1<<32 - 1, Length: 1})},
		{at + "userns_options.gids[0]", gids(&idMapping{HostId: 1 << 16, Length: 1<<32 - 1})},
		{at + "userns_options.uids[0]", uids(&idMapping{HostId: 2, Length: 1<<32 - 2})},
		{at + "network", &nsOpt{UsernsOptions: usersOf(1<<16, 1<<16), Network: nsNode}},
		{at + "ipc", &nsOpt{UsernsOptions: usersOf(1<<16, 1<<16), Ipc: nsNode}},
		{at + "pid", &nsOpt{UsernsOptions: usersOf(1<<16, 1<<16), Pid: nsNode}},
	} {
		c := podConfig("a")
		if tt.ns.Network == nsNode {
			c.Hostname = ""
		}
		podLinux(c).SecurityContext.NamespaceOptions = tt.ns
		ps := testPods()
		ps.Runtimes["runc"] = &world{}
		refused(t, ps.validatePod(RunRequest{Config: c}), tt.field)
	}
	c := podConfig("a")
	podLinux(c).SecurityContext.NamespaceOptions = &nsOpt{UsernsOptions: usersOf(1<<16, 1<<16)}
	ps := testPods()
	ps.Runtimes["runc"] = &world{noUserNS: errors.New("runc 0.1 is too old")}
	err := ps.validatePod(RunRequest{Config: c})
	refused(t, err, at+"userns_options")
	if !strings.Contains(err.Error(), "runc 0.1 is too old") {
		t.Errorf("%v does not say why", err)
	}
	podLinux(c).SecurityContext.NamespaceOptions.UsernsOptions.Mode = nsNode
	podLinux(c).SecurityContext.NamespaceOptions.UsernsOptions = &userNS{Mode: nsNode}
	refused(t, ps.validatePod(RunRequest{Config: c}), "")
}

func TestValidateUserNamespaceOfAContainer(t *testing.T) {
	const field = "linux.security_context.namespace_options.userns_options"
	for _, tt := range []struct {
		field     string // "": accepted
		pod, ctr  *userNS
		uids, gid []*idMapping // of its mount
	}{
		{"", nil, nil, nil, nil},
		{"", nil, &userNS{Mode: nsNode}, nil, nil},
		{"", &userNS{Mode: nsNode}, nil, nil, nil},
		{"", usersOf(1000, 2000), usersOf(1000, 2000), nil, nil},
		{"", usersOf(1000, 2000), usersOf(1000, 2000), usersOf(1000, 2000).Uids, usersOf(1000, 2000).Gids},
		{field, nil, usersOf(1000, 2000), nil, nil},
		{field, usersOf(1000, 2000), nil, nil, nil},
		{field, usersOf(1000, 2000), &userNS{Mode: nsNode}, nil, nil},
		{field, usersOf(1000, 2000), usersOf(1000, 2001), nil, nil},
		{field, usersOf(1000, 2000), usersOf(1001, 2000), nil, nil},
		{field + ".mode", usersOf(1000, 2000), &userNS{Mode: nsContainer}, nil, nil},
		{field + ".uids", usersOf(1000, 2000), &userNS{}, nil, nil},
		{"mounts[0].uidMappings", nil, nil, usersOf(1000, 2000).Uids, usersOf(1000, 2000).Gids},
		{"mounts[0].uidMappings", usersOf(1000, 2000), usersOf(1000, 2000), usersOf(1000, 2001).Uids, usersOf(1000, 2000).Gids},
		{"mounts[0].gidMappings", usersOf(1000, 2000), usersOf(1000, 2000), usersOf(1000, 2000).Uids, nil},
		{"mounts[0].uidMappings", usersOf(1000, 2000), usersOf(1000, 2000), nil, usersOf(1000, 2000).Gids},
		{"mounts[0].gidMappings", usersOf(1000, 2000), usersOf(1000, 2000), usersOf(1000, 2000).Uids, append(usersOf(1000, 2000).Gids, &idMapping{})},
	} {
		pod := podConfig("a")
		podLinux(pod).SecurityContext.NamespaceOptions.UsernsOptions = tt.pod
		p := testPods().newPod(newID(), RunRequest{Config: pod})
		c := containerConfig("x")
		c.Linux = &runtimeapi.LinuxContainerConfig{SecurityContext: &ctrSC{NamespaceOptions: &nsOpt{UsernsOptions: tt.ctr}}}
		c.Mounts = []*mount{{ContainerPath: "/v", HostPath: "/", UidMappings: tt.uids, GidMappings: tt.gid}}
		refused(t, p.validateContainer(c), tt.field)
	}
}

// Guards against a runtime that maps the ids of a mount and forgets its options.
func TestOptionsOfMappedMounts(t *testing.T) {
	users := usersOf(1000, 2000)
	for field, features := range map[string]oci.Features{"mounts[0].mount_options": {}, "": {MappedMountOptions: true}} {
		pod := podConfig("a")
		podLinux(pod).SecurityContext.NamespaceOptions.UsernsOptions = users
		ps := testPods()
		ps.Runtimes["runc"] = &world{features: features}
		c := containerConfig("x")
		c.Linux = &runtimeapi.LinuxContainerConfig{SecurityContext: &ctrSC{NamespaceOptions: &nsOpt{UsernsOptions: users}}}
		c.Mounts = []*mount{{ContainerPath: "/v", HostPath: "/", UidMappings: users.Uids, GidMappings: users.Gids, MountOptions: []string{"noexec"}}}
		refused(t, ps.newPod(newID(), RunRequest{Config: pod}).validateContainer(c), field)
	}
}

// A process of ids that the namespace lacks could not begin: it is refused when
// the image has said who it is.
func TestIDsThatTheUserNamespaceLacks(t *testing.T) {
	p := testPod()
	p.Users = &oci.UserNamespace{UIDs: oci.IDs{Host: 1 << 16, Size: 1001}, GIDs: oci.IDs{Host: 1 << 16, Size: 2001}}
	for _, tt := range []struct {
		field string
		user  specs.User
	}{
		{"", specs.User{UID: 1000, GID: 2000, AdditionalGids: []uint32{2000}}},
		{"linux.security_context.run_as_user", specs.User{UID: 1001}},
		{"linux.security_context.run_as_group", specs.User{UID: 1, GID: 2001}},
		{"linux.security_context.supplemental_groups", specs.User{UID: 1, AdditionalGids: []uint32{1, 1<<32 - 1}}},
	} {
		facts := testFacts()
		facts.User = tt.user
		_, err := Spec(p, testContainer(p), &runtimeapi.ContainerConfig{}, facts)
		refused(t, err, tt.field)
	}
}

// A namespace may lack the group of terminals.
func TestTerminalsOfASmallUserNamespace(t *testing.T) {
	for size, want := range map[uint32]bool{5: false, 6: true} {
		p := testPod()
		p.Users = &oci.UserNamespace{UIDs: oci.IDs{Host: 1 << 16, Size: size}, GIDs: oci.IDs{Host: 1 << 16, Size: size}}
		facts := testFacts()
		facts.User = specs.User{}
		spec, err := Spec(p, testContainer(p), &runtimeapi.ContainerConfig{}, facts)
		if err != nil {
			t.Fatal(err)
		}
		text, err := json.Marshal(spec.Mounts)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Contains(string(text), "gid=5"); got != want {
			t.Errorf("with %d groups: devpts of group 5: %v, want %v", size, got, want)
		}
	}
}

// The pod's root can go through what leads to its containers' roots, and nobody
// else can; a pod without a user namespace is as closed as ever (see
// TestSecretsAndModes).
func TestUserNamespaceOpensItsDirectories(t *testing.T) {
	leak.NeedRoot(t)
	inBubble(t, func(t *testing.T, m *machine) {
		config := podConfig("a")
		podLinux(config).SecurityContext.NamespaceOptions.UsernsOptions = usersOf(1<<20, 1<<16)
		p, err := m.Run(t.Context(), RunRequest{Config: config})
		if err != nil {
			t.Fatal(err)
		}
		if want := (oci.IDs{Host: 1 << 20, Size: 1 << 16}); m.world.asked.Users == nil || m.world.asked.Users.UIDs != want || m.world.asked.Users.GIDs != want {
			t.Errorf("the runtime was asked for %+v", m.world.asked.Users)
		}
		ctr := containerConfig("x")
		ctr.Linux = &runtimeapi.LinuxContainerConfig{SecurityContext: &ctrSC{NamespaceOptions: podLinux(config).SecurityContext.NamespaceOptions}}
		if _, err := p.CreateContainer(t.Context(), ctr); err != nil {
			t.Fatal(err)
		}
		m.must("start")
		err = filepath.WalkDir(p.dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.IsDir() {
				return err
			}
			if path == p.oci().Files() { // the runner's mount, of which the world has a plain directory
				return fs.SkipDir
			}
			info, err := os.Stat(path)
			if err != nil {
				return err
			}
			st := info.Sys().(*syscall.Stat_t)
			if got := fmt.Sprintf("%d:%d %o", st.Uid, st.Gid, info.Mode().Perm()); got != fmt.Sprintf("0:%d 710", 1<<20) {
				t.Errorf("%s is %s", path, got)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
}
