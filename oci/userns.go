package oci

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"berth/oci/keeper"
	"berth/oci/keeper/runner"
	"berth/oci/keeper/wire"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// ErrNotSupported: this kernel or this OCI runtime lacks what was asked for; the
// text names it.
var ErrNotSupported = errors.New("not supported")

// UserNamespace says which ids a pod's user namespace has. Its process 0:0 must
// be able to go through the pod's directory and those above it.
type UserNamespace struct {
	UIDs, GIDs IDs
}

// IDs are the ids 0 to Size-1 of a user namespace: on the host, they are Host
// and those that follow it.
type IDs struct {
	Host, Size uint32
}

// Has says whether the namespace has id.
func (i IDs) Has(id uint32) bool { return id < i.Size }

// Mappings is i as a runtime spec has it.
func (i IDs) Mappings() []specs.LinuxIDMapping {
	return []specs.LinuxIDMapping{{ContainerID: 0, HostID: i.Host, Size: i.Size}}
}

// hostUser is a process's user as the host sees it.
func (c Container) hostUser(u specs.User) (uid, gid int) {
	if c.Users == nil {
		return int(u.UID), int(u.GID)
	}
	return int(c.Users.UIDs.Host) + int(u.UID), int(c.Users.GIDs.Host) + int(u.GID)
}

// TryUserNamespaces finds out whether this kernel gives user namespaces to pods
// whose run directories are below run, and maps the ids of mounts of run and of
// each of stores, the directories of images. ErrNotSupported is for good; another
// error says that it could not be found out.
func TryUserNamespaces(ctx context.Context, k *keeper.Client, run string, stores ...string) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	try := runner.TryUserNS{Pass: []string{run}, Map: append([]string{run}, stores...)}
	err := k.CallRunner(ctx, runner.OpTryUserNS, try, nil, nil)
	if refused := (*wire.Remote)(nil); errors.As(err, &refused) {
		return fmt.Errorf("user namespaces are %w here: %w", ErrNotSupported, err)
	}
	return err
}

// UserNamespaces says why pods of this runtime cannot have a user namespace, in
// which every mount has an id mapping; nil: they can. ErrNotSupported names the
// runtime, if it is that which cannot. Probe comes before.
func (r *Runtime) UserNamespaces() error {
	if r.NoUserNS != nil {
		if err := r.NoUserNS(); err != nil {
			return err
		}
	}
	if r.quirks.noIDMaps != "" {
		return fmt.Errorf("user namespaces are %w by %s: %s", ErrNotSupported, r.Version, r.quirks.noIDMaps)
	}
	return nil
}

// checkMapped refuses mounts that the runtime would leave out without a word.
// ErrNotSupported.
func (r *Runtime) checkMapped(spec *specs.Spec) error {
	if !r.quirks.skipsBelowMapped {
		return nil
	}
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for _, m := range spec.Mounts {
		if len(m.UIDMappings) == 0 || !slices.Contains(m.Options, "rbind") {
			continue
		}
		if below := mountBelow(string(table), m.Source); below != "" {
			return fmt.Errorf("mounts below one in a user namespace are %w by %s, which would leave out %s of %s; newer ones do not", ErrNotSupported, r.Version, below, m.Destination)
		}
	}
	return nil
}

// mountBelow returns a mount point below dir, of mountinfo(5); empty: none.
func mountBelow(table, dir string) string {
	escaped := strings.NewReplacer(" ", `\040`, "\t", `\011`, "\n", `\012`, `\`, `\134`).Replace(strings.TrimSuffix(dir, "/"))
	for line := range strings.Lines(table) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], escaped+"/") && f[4] != "/" {
			return f[4]
		}
	}
	return ""
}
