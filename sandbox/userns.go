package sandbox

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/image"
	"berth/oci"
)

// lastID is the greatest uid or gid that a namespace can map: the one above it
// means "none" to the kernel.
const lastID = 1<<32 - 2

// ttyGID is the group of terminals, by convention. A /dev/pts has ttyOption where
// that group is mapped.
const (
	ttyGID    = 5
	ttyOption = "gid=5"
)

// checkUserNamespace accepts, for a pod, the host's user namespace or one of its
// own with one mapping each of uids and gids, which begin with 0 (KEP-127).
// Nothing else may be the host's then: its network, ipc and pid namespaces
// belong to another user namespace, which gives the pod's root no right to them.
func checkUserNamespace(ns *runtimeapi.NamespaceOption) error {
	const (
		host  = "NODE cannot be combined with a user namespace of the pod's own"
		at    = namespacesField
		field = usersField + "."
	)
	u := ns.GetUsernsOptions()
	switch {
	case u == nil:
		return nil
	case u.GetMode() == runtimeapi.NamespaceMode_NODE && len(u.GetUids()) > 0:
		return invalid(field+"uids", "there is nothing to map in mode NODE")
	case u.GetMode() == runtimeapi.NamespaceMode_NODE && len(u.GetGids()) > 0:
		return invalid(field+"gids", "there is nothing to map in mode NODE")
	case u.GetMode() == runtimeapi.NamespaceMode_NODE:
		return nil
	case u.GetMode() != runtimeapi.NamespaceMode_POD:
		return invalid(field+"mode", "%s is not POD or NODE", u.GetMode())
	case ns.GetNetwork() == runtimeapi.NamespaceMode_NODE:
		return invalid(at+"network", host)
	case ns.GetIpc() == runtimeapi.NamespaceMode_NODE:
		return invalid(at+"ipc", host)
	case ns.GetPid() == runtimeapi.NamespaceMode_NODE:
		return invalid(at+"pid", host)
	}
	if err := checkMapping(field+"uids", u.GetUids()); err != nil {
		return err
	}
	return checkMapping(field+"gids", u.GetGids())
}

func checkMapping(field string, mappings []*runtimeapi.IDMapping) error {
	if len(mappings) != 1 {
		return invalid(field, "has %d mappings; exactly one is supported", len(mappings))
	}
	m := mappings[0]
	field += "[0]"
	switch {
	case m.GetContainerId() != 0:
		return invalid(field+".container_id", "%d leaves id 0 without a mapping; it must be 0", m.GetContainerId())
	case m.GetHostId() == 0:
		return invalid(field+".host_id", "0 would make the pod's root the host's")
	case m.GetLength() == 0:
		return invalid(field+".length", "is 0")
	case uint64(m.GetHostId())+uint64(m.GetLength())-1 > lastID:
		return invalid(field, "%d ids from %d on go beyond %d, the last one", m.GetLength(), m.GetHostId(), uint32(lastID))
	}
	return nil
}

// checkUserNamespaces refuses a pod with a user namespace where the handler has
// none to give.
func (ps *Pods) checkUserNamespaces(req RunRequest) error {
	ns := req.Config.GetLinux().GetSecurityContext().GetNamespaceOptions()
	if users(ns) == nil {
		return nil
	}
	r, _ := ps.handler(req.Handler)
	if err := r.UserNamespaces(); err != nil {
		return invalid(usersField, "%v", err)
	}
	return nil
}

// checkUsers: a container has its pod's user namespace, and says so.
func (p *Pod) checkUsers(ns *runtimeapi.NamespaceOption) error {
	if err := checkUserNamespace(ns); err != nil {
		return err
	}
	const field = usersField
	own, pod := users(ns), p.users()
	switch {
	case own == nil && pod == nil:
		return nil
	case own == nil:
		return invalid(field, "the pod has a user namespace; give the container the same mappings")
	case pod == nil:
		return invalid(field, "the pod has no user namespace")
	case *own != *pod:
		return invalid(field, "the mappings are not the pod's")
	}
	return nil
}

// checkMountMappings: what a mount maps, it maps for the pod's user namespace.
func (p *Pod) checkMountMappings(mounts []*runtimeapi.Mount) error {
	pod := p.namespaces().GetUsernsOptions()
	for i, m := range mounts {
		if len(m.GetUidMappings())+len(m.GetGidMappings()) == 0 {
			continue
		}
		field := fmt.Sprintf("mounts[%d].", i)
		for _, of := range []struct {
			field     string
			own, pods []*runtimeapi.IDMapping
		}{
			{field + "uidMappings", m.GetUidMappings(), pod.GetUids()},
			{field + "gidMappings", m.GetGidMappings(), pod.GetGids()},
		} {
			switch {
			case p.users() == nil && len(of.own) > 0:
				return invalid(of.field, "the pod has no user namespace")
			case p.users() != nil && !slices.EqualFunc(of.own, of.pods, sameMapping):
				return invalid(of.field, "are not the mappings of the pod's user namespace")
			}
		}
		if len(m.GetMountOptions()) > 0 && m.GetImage() == nil && !p.runtime().Features().MappedMountOptions {
			return invalid(field+"mount_options", "the OCI runtime of this node leaves them out where ids are mapped; newer ones do not")
		}
	}
	return nil
}

func sameMapping(a, b *runtimeapi.IDMapping) bool {
	return a.GetContainerId() == b.GetContainerId() && a.GetHostId() == b.GetHostId() && a.GetLength() == b.GetLength()
}

// users are the ids of a validated user namespace; nil is the host's.
func users(ns *runtimeapi.NamespaceOption) *oci.UserNamespace {
	u := ns.GetUsernsOptions()
	if u == nil || u.GetMode() != runtimeapi.NamespaceMode_POD {
		return nil
	}
	return &oci.UserNamespace{UIDs: ids(u.GetUids()[0]), GIDs: ids(u.GetGids()[0])}
}

func ids(m *runtimeapi.IDMapping) oci.IDs { return oci.IDs{Host: m.GetHostId(), Size: m.GetLength()} }

// users are the ids of the pod's user namespace; nil is the host's.
func (p *Pod) users() *oci.UserNamespace { return users(p.namespaces()) }

// rootUsers is whose the root filesystems of the pod's containers are.
func (p *Pod) rootUsers() *image.Users {
	u := p.users()
	if u == nil {
		return nil
	}
	return &image.Users{Namespace: p.oci().UserNS(), UIDs: image.IDs(u.UIDs), GIDs: image.IDs(u.GIDs)}
}

// admit lets the root of the pod's user namespace, and nobody else, go through
// directories of the pod, without listing them: runtimes prepare a container's
// root filesystem as that root.
func (p *Pod) admit(dirs ...string) error {
	u := p.users()
	if u == nil {
		return nil
	}
	for _, dir := range dirs {
		if err := open(dir, 0o710, int(u.GIDs.Host)); err != nil {
			return err
		}
	}
	return nil
}

// open gives a directory a mode, and a group unless gid is -1.
func open(dir string, mode os.FileMode, gid int) error {
	f, err := os.OpenFile(dir, os.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Chown(-1, gid), f.Chmod(mode), f.Close())
}

// checkMapped refuses a process of ids that the pod's user namespace lacks.
func checkMapped(u *oci.UserNamespace, process specs.User) error {
	if u == nil {
		return nil
	}
	const at = securityField
	switch {
	case !u.UIDs.Has(process.UID):
		return invalid(at+"run_as_user", "user %d is not among the %d of the pod's user namespace", process.UID, u.UIDs.Size)
	case !u.GIDs.Has(process.GID):
		return invalid(at+"run_as_group", "group %d is not among the %d of the pod's user namespace", process.GID, u.GIDs.Size)
	}
	for _, gid := range process.AdditionalGids {
		if !u.GIDs.Has(gid) {
			return invalid(at+"supplemental_groups", "group %d is not among the %d of the pod's user namespace", gid, u.GIDs.Size)
		}
	}
	return nil
}

// mapMounts makes mounts fit for a user namespace: the pod's own files get its
// mappings, as the config's mounts bring theirs.
func mapMounts(u *oci.UserNamespace, mounts []specs.Mount) {
	if u == nil {
		return
	}
	for i := range mounts {
		switch m := &mounts[i]; m.Type {
		case "bind":
			m.UIDMappings, m.GIDMappings = u.UIDs.Mappings(), u.GIDs.Mappings()
		case "devpts":
			if !u.GIDs.Has(ttyGID) {
				m.Options = slices.DeleteFunc(m.Options, func(o string) bool { return o == ttyOption })
			}
		}
	}
}

// mappings are those of a config's mount.
func mappings(list []*runtimeapi.IDMapping) []specs.LinuxIDMapping {
	var all []specs.LinuxIDMapping
	for _, m := range list {
		all = append(all, ids(m).Mappings()...)
	}
	return all
}
