package conformance

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/test/expect"
	"berth/test/leak"
)

// loadProfile gives the kernel an AppArmor profile, until the test ends.
func loadProfile(t *testing.T, name, rules string) {
	t.Helper()
	load := exec.Command(leak.NeedTool(t, "apparmor_parser"), "--replace", "--skip-cache")
	load.Stdin = strings.NewReader(fmt.Sprintf("abi <abi/3.0>,\nprofile %s flags=(attach_disconnected) {\n%s\n}\n", name, rules))
	if out, err := load.CombinedOutput(); err != nil {
		t.Fatalf("load %s: %v: %s", name, err, out)
	}
	t.Cleanup(func() { removeProfile(t, name) })
}

// removeProfile takes a profile away from the kernel, and from all it confines.
func removeProfile(t *testing.T, name string) {
	t.Helper()
	if err := os.WriteFile("/sys/kernel/security/apparmor/.remove", []byte(name), 0); err != nil {
		t.Errorf("remove %s: %v", name, err)
	}
}

func profileLoaded(t *testing.T, name string) bool {
	t.Helper()
	list, err := os.ReadFile("/sys/kernel/security/apparmor/profiles")
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Contains(list, []byte(name+" (enforce)\n"))
}

// Each way to ask for a profile, seen from inside.
func TestAppArmor(t *testing.T) {
	leak.NeedAppArmor(t)
	type profile = runtimeapi.SecurityProfile
	const (
		// Debian gives /usr/bin/crun a label that confines nothing. What it starts
		// has it, beside its own profile where no_new_privs forbids to drop it.
		script = `sed 's/.*(\?unconfined)\?$/unconfined/; s,//&crun (mixed), (enforce),' /proc/self/attr/current; echo x 2>/dev/null >/tmp/forbidden || echo refused`
		name   = "berth-test"
	)
	loadProfile(t, name, "capability, file, network, unix, signal, ptrace, deny /tmp/forbidden w,")
	forEachRuntime(t, func(t *testing.T, n *node) {
		n.pull(t, n.busybox)
		pod := n.privilegedPod(t, "web")
		const byDefault, local, free = "berth-default (enforce)", name + " (enforce)\nrefused", "unconfined"
		for _, test := range []struct {
			name, want string
			change     func(*security)
		}{
			{"nothing", byDefault, nil},
			{"default", byDefault, func(s *security) { s.Apparmor = &profile{} }},
			{"localhost", local, func(s *security) { s.Apparmor = &profile{ProfileType: localhost, LocalhostRef: name} }},
			{"unconfined", free, func(s *security) { s.Apparmor = &profile{ProfileType: runtimeapi.SecurityProfile_Unconfined} }},
			{"deprecated-default", byDefault, func(s *security) { s.ApparmorProfile = "runtime/default" }},
			{"deprecated-localhost", local, func(s *security) { s.ApparmorProfile = "localhost/" + name }},
			{"deprecated-unconfined", free, func(s *security) { s.ApparmorProfile = "unconfined" }},
			{"deprecated-is-overruled", local, func(s *security) {
				s.Apparmor, s.ApparmorProfile = &profile{ProfileType: localhost, LocalhostRef: name}, "unconfined"
			}},
			{"privileged", free, func(s *security) {
				s.Privileged, s.Apparmor = true, &profile{ProfileType: localhost, LocalhostRef: name}
			}},
			{"not-root", byDefault, func(s *security) {
				s.RunAsUser, s.NoNewPrivs = &runtimeapi.Int64Value{Value: 1000}, true
			}},
		} {
			n.wantBoth(t, pod, test.name, script, test.want, test.change)
		}
		for field, change := range map[string]func(*security){
			"apparmor.localhost_ref": func(s *security) { s.Apparmor = &profile{ProfileType: localhost, LocalhostRef: "no-such"} },
			"apparmor_profile":       func(s *security) { s.ApparmorProfile = "localhost/no-such" },
		} {
			config := n.shell("refused", "true")
			change(config.Linux.SecurityContext)
			_, err := n.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: config})
			expect.Code(t, field, err, codes.InvalidArgument, "linux.security_context."+field, `"no-such" is not loaded`)
		}
	})
}

// Guards against a profile that is lost for good: aa-remove-unknown unloads it,
// with all others that have no file in /etc/apparmor.d.
func TestDefaultAppArmorProfileIsLoaded(t *testing.T) {
	leak.NeedAppArmor(t)
	forEachRuntime(t, func(t *testing.T, n *node) {
		n.pull(t, n.busybox)
		pod := n.runPod(t, podConfig(t, "web"))
		for i := range 2 {
			if profileLoaded(t, "berth-default") {
				removeProfile(t, "berth-default")
			}
			got := n.says(t, pod, fmt.Sprintf("c%d", i), "cat /proc/self/attr/current", nil)
			if got != "berth-default (enforce)" {
				t.Errorf("%d: %q", i, got)
			}
		}
	})
}

// What the default profile takes from a root who has every capability and sees
// all of /proc and /sys, and what it leaves him.
func TestDefaultAppArmorProfile(t *testing.T) {
	leak.NeedAppArmor(t)
	const script = `can() { what=$1; shift; "$@" >/dev/null 2>&1 && echo $what; }
		can mount mount -t tmpfs x /tmp; can umount umount /dev/shm
		can sysctl sh -c 'cat /proc/sys/vm/swappiness >/tmp/was && cat /tmp/was >/proc/sys/vm/swappiness'
		can sysrq sh -c 'echo h >/proc/sysrq-trigger'; can kcore head -c 1 /proc/kcore
		can firmware ls /sys/firmware; can host kill -CONT $HOST
		can own sh -c 'echo 500 >/proc/self/oom_score_adj'; can own-name sh -c 'echo x >/proc/self/comm'
		sleep 4720 & can signal kill -9 $!; can write touch /own; can exec /bin/true; true`
	all := &runtimeapi.Capability{AddCapabilities: []string{"ALL"}}
	forEachRuntime(t, func(t *testing.T, n *node) {
		n.pull(t, n.busybox)
		host := exec.Command("sleep", "4720") // not confined
		if err := host.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = host.Process.Kill()
			_ = host.Wait() // its error is the signal
		})
		config := podConfig(t, "web")
		config.Linux.SecurityContext.NamespaceOptions = &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_NODE}
		pod := n.runPod(t, config)
		script := fmt.Sprintf("HOST=%d; %s", host.Process.Pid, script)
		const left = "own\nown-name\nsignal\nwrite\nexec"
		for name, noNewPrivs := range map[string]bool{"confined": false, "without-new-privileges": true} {
			n.wantBoth(t, pod, name, script, left, func(s *security) {
				s.Capabilities, s.NamespaceOptions, s.NoNewPrivs = all, config.Linux.SecurityContext.NamespaceOptions, noNewPrivs
			})
		}
		_, run, _ := n.bothSay(t, pod, "unconfined", script, func(s *security) {
			s.Capabilities, s.NamespaceOptions = all, config.Linux.SecurityContext.NamespaceOptions
			s.Apparmor = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}
		})
		for _, can := range []string{"mount", "umount", "sysctl", "sysrq", "kcore", "firmware", "host"} {
			if !strings.Contains(run+"\n", can+"\n") {
				t.Errorf("without the profile it cannot %s either, so that the test shows nothing: %q", can, run)
			}
		}
	})
}
