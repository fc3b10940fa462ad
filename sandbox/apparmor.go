package sandbox

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// defaultAppArmor is the profile that RuntimeDefault means: the node's of that
// name, or else Berth's own.
const defaultAppArmor = "berth-default"

//go:embed apparmor.profile
var defaultAppArmorText []byte

// Files of the kernel. A list of loaded profiles has a line for each: the name
// and, in parentheses, the mode.
const (
	appArmorEnabled  = "/sys/module/apparmor/parameters/enabled"
	appArmorProfiles = "/sys/kernel/security/apparmor/profiles"
)

// hasAppArmor also asks for the list: a container that berthd runs in may not
// show it, and cannot load a profile either.
func hasAppArmor() bool {
	text, err := os.ReadFile(appArmorEnabled)
	if err != nil || strings.TrimSpace(string(text)) != "Y" {
		return false
	}
	_, err = os.Stat(appArmorProfiles)
	return err == nil
}

// appArmorOf: to CRI, no profile at all is RuntimeDefault.
func appArmorOf(sc *runtimeapi.LinuxContainerSecurityContext) (confinement, error) {
	text := sc.GetApparmorProfile()
	if text == "" {
		text = "runtime/default"
	}
	return profileOf("apparmor", sc.GetApparmor(), "apparmor_profile", text)
}

// checkAppArmor: without AppArmor, RuntimeDefault is what the kernel does
// anyhow; the kubelet sends it to every node.
func (n node) checkAppArmor(sc *runtimeapi.LinuxContainerSecurityContext) error {
	c, err := appArmorOf(sc)
	if err != nil {
		return err
	}
	if err := c.check(); err != nil {
		return err
	}
	if c.GetProfileType() == runtimeapi.SecurityProfile_Localhost && !n.appArmor {
		return unsupported(c.field, ErrNoAppArmor)
	}
	return nil
}

// appArmorProfile is the loaded profile that a validated sc asks for; "": none.
func (n node) appArmorProfile(ctx context.Context, sc *runtimeapi.LinuxContainerSecurityContext) (string, error) {
	c, err := appArmorOf(sc)
	if err != nil || !n.appArmor || sc.GetPrivileged() || c.GetProfileType() == runtimeapi.SecurityProfile_Unconfined {
		return "", err
	}
	if c.GetProfileType() == runtimeapi.SecurityProfile_RuntimeDefault {
		return defaultAppArmor, loadDefaultAppArmor(ctx)
	}
	name := c.GetLocalhostRef()
	loaded, err := appArmorLoaded(name)
	if err == nil && !loaded {
		err = invalid(c.refField, "AppArmor profile %q is not loaded on this node", name)
	}
	return name, err
}

func appArmorLoaded(name string) (bool, error) {
	list, err := os.ReadFile(appArmorProfiles)
	if err != nil {
		return false, fmt.Errorf("list AppArmor profiles: %w", err)
	}
	return profileListed(string(list), name), nil
}

func profileListed(list, name string) bool {
	for line := range strings.Lines(list) {
		if at := strings.LastIndex(line, " ("); at >= 0 && line[:at] == name {
			return true
		}
	}
	return false
}

// loadingAppArmor is held while the default profile is looked for and loaded: of
// a hundred containers at once, one loads it.
var loadingAppArmor sync.Mutex

// appArmorTimeout bounds the compilation of the default profile.
const appArmorTimeout = time.Minute

// loadDefaultAppArmor loads the default profile unless there is one of its name.
// It is asked for with each container: aa-remove-unknown, which some packages run
// when they are removed, unloads what has no file in /etc/apparmor.d.
func loadDefaultAppArmor(ctx context.Context) error {
	loadingAppArmor.Lock()
	defer loadingAppArmor.Unlock()
	if loaded, err := appArmorLoaded(defaultAppArmor); err != nil || loaded {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, appArmorTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "apparmor_parser", "--replace", "--skip-cache")
	cmd.Stdin = bytes.NewReader(defaultAppArmorText)
	out, err := cmd.CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		return fmt.Errorf("load AppArmor profile %s: install apparmor_parser, or load a profile of that name: %w", defaultAppArmor, err)
	}
	if err != nil {
		return fmt.Errorf("load AppArmor profile %s: %w: %.1000s", defaultAppArmor, err, bytes.TrimSpace(out))
	}
	return nil
}
