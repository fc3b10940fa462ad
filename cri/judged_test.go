package cri

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
)

// A judgement says which values of a field are wrong. Values and requests are in
// protobuf's text format, in which $name stands for what the world of the test
// has under that name.
type judgement struct {
	wrong  []string // InvalidArgument, which names the field
	why    reason   // of the refusal
	free   string   // why there are none, and any value is accepted
	beside string   // what the request needs for the wrong values to be read
	as     string   // another name that the error may give the field
}

func wrong(why reason, values ...string) judgement { return judgement{wrong: values, why: why} }

// A reason to refuse a value. Taste is none: what Kubernetes lets pass and both peers
// accept is accepted, if need be without effect.
type reason string

const (
	ruled   reason = "CRI, or Kubernetes' own validation, rules it out"
	kernel  reason = "the kernel, or the OCI runtime spec, cannot have it"
	unsafe  reason = "it would mean something else than it says, or reach what is not the pod's"
	unbuilt reason = "what it asks for is not built yet, and to leave it out in silence would be wrong"
)

func free(why string) judgement { return judgement{free: why} }

// byNode is for values of which the node's own parts decide.
func byNode() judgement { return judgement{} }

func (j judgement) with(beside string) judgement { j.beside = beside; return j }

func (j judgement) named(as string) judgement { j.as = as; return j }

// called is how errors may name the field: within the config that it is of.
func (j judgement) called(name string) []string {
	_, name, _ = strings.Cut(name, ".")
	for prefix, within := range map[string]string{"config.": "", "linux.": "linux.resources."} {
		if rest, ok := strings.CutPrefix(name, prefix); ok {
			name = within + rest
			break
		}
	}
	if j.as != "" {
		return []string{name, j.as}
	}
	return []string{name}
}

// Parts of requests are judged together where they mean the same.
type part struct {
	at     []string
	fields map[string]judgement
}

// judgements are those of all parts, by the full names of fields.
func judgements(t *testing.T) map[string]judgement {
	t.Helper()
	all := map[string]judgement{}
	for _, p := range judged {
		for _, at := range p.at {
			for name, j := range p.fields {
				full := at + "." + name
				if _, twice := all[full]; twice {
					t.Errorf("%s: is judged twice", full)
				}
				all[full] = j
			}
		}
	}
	return all
}

func quoted(n int, of string) string { return strconv.Quote(strings.Repeat(of, n)) }

var (
	either   = free("both values have a meaning")
	anyLabel = free("labels and annotations are the caller's own, and are kept")
	anyWord  = free("it is looked for, and what is not there matches nothing")
	unread   = free("it is not read")
	anID     = wrong(ruled, `""`)
	aName    = wrong(unsafe, `""`, `"a b"`, `"a;K8S_POD_NAME=b"`, `"a=b"`, `"-a"`, `"a\nb"`, `"a\000"`, quoted(254, "x"))
	aPath    = []string{`"relative"`, `"../x"`, `"/a/../b"`, `"/a//b"`, `"/a\000b"`, quoted(2100, "/x"), `"/` + strings.Repeat("x", 256) + `"`}
	anArg    = wrong(kernel, `"a\000b"`, quoted(128<<10, "x"))
	refs     = wrong(ruled, `""`, `"a/UPPER"`, `"a b"`, `"a@sha256:short"`, `"http://a/b"`, `"../a"`, `"a\000"`, quoted(300, "x"))
	aWord    = wrong(unsafe, `""`, `"a b"`, `"a\nnameserver 6.6.6.6"`, `" a"`, `"a\000b"`, `"a\033b"`, quoted(300, "x"))
	mode     = wrong(ruled, "TARGET", "4", "-1")
)

const (
	podLinux   = "RunPodSandbox.config.linux"
	podSC      = podLinux + ".security_context"
	ctrSC      = "CreateContainer.config.linux.security_context"
	userns     = ns + "userns_options"
	hugepages  = limits + "hugepage_limits"
	sc         = "linux.security_context."
	ns         = sc + "namespace_options."
	limits     = "linux.resources."
	mappedIDs  = "host_id: 100000 container_id: 0 length: 65536"
	mappedPod  = "userns_options { mode: POD uids { " + mappedIDs + " } gids { " + mappedIDs + " } }"
	ownLimits  = "cpu_period: 100000 cpu_quota: 200000 cpu_shares: 512 oom_score_adj: 500 $pagesizes"
	aContainer = `container_id: "$container"`
)

// requests are, for each method that is built, one that is right and has as much
// in it as goes together.
var requests = map[string]string{
	"Version": `version: "0.1.0"`,
	"RunPodSandbox": `
		runtime_handler: "fast"
		config {
			metadata { name: "web" namespace: "default" uid: "uid-web" attempt: 1 }
			hostname: "web-1"
			log_directory: "$logs"
			dns_config { servers: "10.0.0.53" searches: "svc.local" options: "ndots:5" }
			port_mappings { container_port: 80 host_port: 8080 host_ip: "127.0.0.1" }
			labels { key: "app" value: "web" }
			annotations { key: "note" value: "kept" }
			linux {
				sysctls { key: "kernel.shm_rmid_forced" value: "1" }
				security_context { supplemental_groups: 7 namespace_options { pid: CONTAINER ` + mappedPod + ` } }
			}
		}`,
	"StopPodSandbox":      `pod_sandbox_id: "$nobody"`,
	"RemovePodSandbox":    `pod_sandbox_id: "$nobody"`,
	"PodSandboxStatus":    `pod_sandbox_id: "$mapped" verbose: true`,
	"ListPodSandbox":      `filter { id: "$mapped" state { state: SANDBOX_READY } label_selector { key: "app" value: "web" } }`,
	"PodSandboxStats":     `pod_sandbox_id: "$mapped"`,
	"ListPodSandboxStats": `filter { id: "$mapped" label_selector { key: "app" value: "web" } }`,
	"CreateContainer": `
		pod_sandbox_id: "$mapped"
		config {
			metadata { name: "main" attempt: 1 }
			image { image: "$image" user_specified_image: "busybox" }
			command: "sh"
			args: "-c"
			working_dir: "/srv"
			envs { key: "A" value: "b" }
			mounts {
				container_path: "/mnt" host_path: "/" mount_options: "nodev"
				uidMappings { ` + mappedIDs + ` } gidMappings { ` + mappedIDs + ` }
			}
			devices { container_path: "/dev/nothing" host_path: "/dev/null" permissions: "rw" }
			labels { key: "part" value: "main" }
			annotations { key: "note" value: "kept" }
			log_path: "main.log"
			stdin: true
			stop_signal: SIGNAL_SIGQUIT
			linux {
				resources { ` + ownLimits + ` }
				security_context {
					capabilities { add_capabilities: "NET_ADMIN" drop_capabilities: "MKNOD" add_ambient_capabilities: "CHOWN" }
					namespace_options { pid: CONTAINER ` + mappedPod + ` }
					supplemental_groups: 7
					masked_paths: "/proc/keys"
					readonly_paths: "/proc/sys"
				}
			}
		}`,
	"StartContainer":           aContainer,
	"StopContainer":            `container_id: "$nobody" timeout: 1`,
	"RemoveContainer":          `container_id: "$nobody"`,
	"ContainerStatus":          aContainer + " verbose: true",
	"ListContainers":           `filter { id: "$container" pod_sandbox_id: "$mapped" state { state: CONTAINER_RUNNING } label_selector { key: "part" value: "main" } }`,
	"UpdateContainerResources": aContainer + " linux { " + ownLimits + ` } annotations { key: "note" value: "lost" }`,
	"ReopenContainerLog":       aContainer,
	"ExecSync":                 aContainer + ` cmd: "true" timeout: 1`,
	"Exec":                     aContainer + ` cmd: "true" stdin: true stdout: true`,
	"Attach":                   aContainer + ` stdin: true stdout: true`,
	"PortForward":              `pod_sandbox_id: "$mapped" port: 80`,
	"ContainerStats":           aContainer,
	"ListContainerStats":       `filter { id: "$container" pod_sandbox_id: "$mapped" label_selector { key: "part" value: "main" } }`,
	"Status":                   `verbose: true`,
	"RuntimeConfig":            ``,
	"UpdateRuntimeConfig":      `runtime_config { network_config { pod_cidr: "10.0.0.0/24,fd00::/64" } }`,
	"ListImages":               `filter { image { image: "$image" } }`,
	"ImageStatus":              `image { image: "$image" } verbose: true`,
	"PullImage":                `image { image: "$image" }`,
	"RemoveImage":              `image { image: "$registry/never:1" }`,
	"ImageFsInfo":              ``,
}

// unbuiltMethods answer Unimplemented.
var unbuiltMethods = []string{
	"StreamPodSandboxes", "StreamContainers", "StreamContainerStats", "StreamPodSandboxStats", "StreamPodSandboxMetrics", "StreamImages",
	"CheckpointContainer", "CheckpointPod", "RestorePod", "GetContainerEvents",
	"ListMetricDescriptors", "ListPodSandboxMetrics", "UpdatePodSandboxResources",
}

// needs is what a method cannot do without; the others can do without
// anything.
var needs = map[string]string{
	"RunPodSandbox": "config", "StopPodSandbox": "pod_sandbox_id", "RemovePodSandbox": "pod_sandbox_id",
	"PodSandboxStatus": "pod_sandbox_id", "PodSandboxStats": "pod_sandbox_id",
	"CreateContainer": "pod_sandbox_id", "StartContainer": "container_id", "StopContainer": "container_id", "RemoveContainer": "container_id",
	"ContainerStatus": "container_id", "ContainerStats": "container_id", "UpdateContainerResources": "container_id", "ReopenContainerLog": "container_id",
	"ExecSync": "container_id", "Exec": "stdin, stdout, stderr", "Attach": "stdin, stdout, stderr", "PortForward": "pod_sandbox_id",
	"ImageStatus": "image.image", "PullImage": "image.image", "RemoveImage": "image.image",
}

var judged = []part{
	{[]string{"RunPodSandbox"}, map[string]judgement{
		"runtime_handler": wrong(ruled, `"kata"`, `"../fast"`, quoted(1000, "x")),
		"config.windows":  wrong(ruled, "{}"),
	}},
	{[]string{"RunPodSandbox.config"}, map[string]judgement{
		"metadata.name":                aName,
		"metadata.namespace":           aName,
		"metadata.uid":                 aName,
		"metadata.attempt":             free("it tells one try from the next"),
		"hostname":                     wrong(ruled, `"a b"`, `"a\nb"`, `"-a"`, `"a_b"`, `"a.."`, `"a\000"`, quoted(65, "x")),
		"log_directory":                wrong(unsafe, aPath...),
		"dns_config.servers":           wrong(unsafe, `""`, `"localhost"`, `"1.1.1.1\noptions x"`, `"fe80::1%a\nnameserver 6.6.6.6"`, `"fe80::1%a b"`, `"fe80::1%`+strings.Repeat("x", 300)+`"`),
		"dns_config.searches":          aWord,
		"dns_config.options":           aWord,
		"port_mappings.protocol":       wrong(ruled, "3", "-1"),
		"port_mappings.container_port": wrong(ruled, "0", "-1", "65536"),
		"port_mappings.host_port":      wrong(ruled, "-1", "65536"),
		"port_mappings.host_ip":        wrong(ruled, `"localhost"`, `"127.0.0.1:80"`, `"fe80::1%eth0"`, `"1.1.1.1\n"`, `"::/0"`),
		"labels":                       anyLabel,
		"annotations":                  anyLabel,
	}},
	{[]string{podLinux}, map[string]judgement{
		"cgroup_parent": wrong(unsafe, append(aPath, `"/"`, `"kubepods.slice"`, `"/a\nb"`)...),
		"overhead":      free("the pod's cgroup is the kubelet's, which has set it already"),
		"resources":     free("the pod's cgroup is the kubelet's, which has set it already"),
		"sysctls": wrong(unsafe,
			`{ key: "kernel.core_pattern" value: "x" }`, `{ key: "vm.overcommit_memory" value: "1" }`,
			`{ key: "" value: "1" }`, `{ key: "net" value: "1" }`, `{ key: "net." value: "1" }`, `{ key: "net..a" value: "1" }`,
			`{ key: "net/../kernel/core_pattern" value: "x" }`, `{ key: "net...kernel.core_pattern" value: "x" }`, `{ key: "net.x=1" value: "1" }`,
			`{ key: "kernel.shm_rmid_forced" value: "" }`, `{ key: "kernel.shm_rmid_forced" value: "1\n" }`,
			`{ key: "kernel.shm_rmid_forced" value: "1+kernel.core_pattern=|/x" }`, `{ key: "kernel.shm_rmid_forced" value: `+quoted(1025, "1")+` }`,
			manySysctls(),
		),
	}},
	{[]string{podSC, ctrSC}, map[string]judgement{
		"namespace_options.network":                          mode,
		"namespace_options.ipc":                              mode,
		"namespace_options.target_id":                        wrong(ruled, `"x"`),
		"namespace_options.userns_options.mode":              wrong(ruled, "CONTAINER", "TARGET", "4"),
		"namespace_options.userns_options.uids.host_id":      wrong(ruled, "0", "4294967295").named(userns + ".uids"),
		"namespace_options.userns_options.uids.container_id": wrong(ruled, "1", "4294967295"),
		"namespace_options.userns_options.uids.length":       wrong(ruled, "0", "4294967295").named(userns + ".uids"),
		"namespace_options.userns_options.gids.host_id":      wrong(ruled, "0", "4294967295").named(userns + ".gids"),
		"namespace_options.userns_options.gids.container_id": wrong(ruled, "1", "4294967295"),
		"namespace_options.userns_options.gids.length":       wrong(ruled, "0", "4294967295").named(userns + ".gids"),

		"selinux_options.user":       byNode(),
		"selinux_options.role":       byNode(),
		"selinux_options.type":       byNode(),
		"selinux_options.level":      byNode(),
		"run_as_user.value":          wrong(unsafe, "-1", "2147483648", "4294967296").named(sc + "run_as_user"),
		"run_as_group.value":         wrong(unsafe, "-1", "2147483648", "4294967296").with(inSC("run_as_user { value: 1 }")).named(sc + "run_as_group"),
		"readonly_rootfs":            either,
		"supplemental_groups":        wrong(unsafe, "-1", "2147483648", "[1, 4294967296]", "["+numbers(65537)+"]"),
		"supplemental_groups_policy": wrong(ruled, "2", "-1"),
		"seccomp.profile_type":       wrong(ruled, "3", "-1"),
		"seccomp.localhost_ref":      wrong(unsafe, append(aPath, `""`)...).with(inSC("seccomp { profile_type: Localhost }")),
		"apparmor.profile_type":      wrong(ruled, "3", "-1"),
		"apparmor.localhost_ref":     wrong(ruled, `"only for Localhost"`),
		"seccomp_profile_path":       wrong(ruled, `"default"`, `"localhost/relative"`, `"localhost/"`, `"runtime/default\n"`, quoted(1000, "x")),
	}},
	{[]string{podSC}, map[string]judgement{
		"namespace_options.pid": mode,
		"privileged":            either,
	}},
	{[]string{"CreateContainer"}, map[string]judgement{
		"pod_sandbox_id":          anID,
		"sandbox_config":          free("it is not read: the pod keeps its own"),
		"config.windows":          wrong(ruled, "{}"),
		"config.CDI_devices":      wrong(unbuilt, `{ name: "vendor.com/class=device" }`),
		"config.mounts.image":     wrong(ruled, "{}", `{ image: "$image" }`),
		"config.metadata.name":    aName,
		"config.image.image":      refs,
		"config.log_path":         wrong(unsafe, `"/x"`, `"../x"`, `"a/../b"`, `"."`, `".."`, `"a/"`, `"a\000b"`, quoted(2100, "x/"), quoted(256, "x")),
		"config.stop_signal":      wrong(kernel, "66", "1000", "-1"),
		"config.working_dir":      wrong(unsafe, `"relative"`, `"../x"`, `"/a\000b"`, `"/proc/self/fd/8"`, `"/proc"`, `"/x/../proc/1/root"`, quoted(2100, "/x"), `"/`+strings.Repeat("x", 256)+`"`),
		"config.command":          wrong(kernel, append(anArg.wrong, `""`)...),
		"config.args":             anArg,
		"config.envs.key":         wrong(kernel, `""`, `"A=B"`, `"A\000"`, quoted(128<<10, "x")),
		"config.envs.value":       wrong(kernel, `"a\000b"`, `"\377"`, quoted(128<<10, "x")),
		"config.labels":           anyLabel,
		"config.annotations":      anyLabel,
		"config.stdin":            either,
		"config.stdin_once":       either,
		"config.tty":              either,
		"config.metadata.attempt": free("it tells one try from the next"),
	}},
	{[]string{"CreateContainer.config.image"}, map[string]judgement{
		"annotations": unread, "user_specified_image": free("it is shown as it came"), "runtime_handler": unread, "image_ref": unread,
	}},
	{[]string{"CreateContainer.config.mounts"}, map[string]judgement{
		"container_path":           wrong(unsafe, `""`, `"x"`, `"/"`, `"/."`, `"/a/../.."`, `"/a\000b"`, quoted(2100, "/x"), `"/`+strings.Repeat("x", 256)+`"`),
		"host_path":                wrong(ruled, `""`, `"x"`, `"/no/such/path"`, `"/a\000b"`, quoted(2100, "/x")),
		"readonly":                 either,
		"selinux_relabel":          either,
		"propagation":              wrong(ruled, "3", "-1"),
		"uidMappings.host_id":      wrong(ruled, "0", "1").named("mounts.uidMappings"),
		"uidMappings.container_id": wrong(ruled, "1").named("mounts.uidMappings"),
		"uidMappings.length":       wrong(ruled, "0", "1").named("mounts.uidMappings"),
		"gidMappings.host_id":      wrong(ruled, "0", "1").named("mounts.gidMappings"),
		"gidMappings.container_id": wrong(ruled, "1").named("mounts.gidMappings"),
		"gidMappings.length":       wrong(ruled, "0", "1").named("mounts.gidMappings"),
		"recursive_read_only":      wrong(ruled, "true"),
		"image_sub_path":           wrong(ruled, `"x"`),
		"mount_options":            wrong(ruled, `""`, `"suid"`, `"exec"`, `"ro"`, `"nodev,suid"`, `"NODEV"`),
	}},
	{[]string{"CreateContainer.config.devices"}, map[string]judgement{
		"container_path": wrong(unsafe, append(aPath, `""`, `"/"`)...),
		"host_path":      wrong(ruled, append(aPath, `""`, `"/dev/no-such-device"`, `"/etc/passwd"`)...),
		"permissions":    wrong(ruled, `""`, `"x"`, `"rwmr"`, `"RW"`, `"r w"`),
	}},
	{[]string{"CreateContainer.config.linux.resources", "UpdateContainerResources.linux"}, map[string]judgement{
		"cpu_period":                 wrong(kernel, "-1", "999", "1000001"),
		"cpu_quota":                  wrong(kernel, "-2", "999", "17592186044416"),
		"cpu_shares":                 wrong(kernel, "-1", "1", "262145"),
		"memory_limit_in_bytes":      wrong(kernel, "-1", "4194303"),
		"memory_swap_limit_in_bytes": wrong(kernel, "-2", "1"),
		"oom_score_adj":              wrong(kernel, "-1001", "1001"),
		"cpuset_cpus":                wrong(kernel, `"x"`, `"0-"`, `"0,,0"`, `"1-0"`, `"0 "`, `"-1"`, `"8191"`, `"9999999999999999999"`, quoted(20000, "0,")),
		"cpuset_mems":                wrong(kernel, `"x"`, `"0-"`, `"0,,0"`, `"1-0"`, `"0 "`, `"-1"`, `"8191"`, `"9999999999999999999"`, quoted(20000, "0,")),
		"hugepage_limits.page_size":  wrong(kernel, `""`, `"3MB"`, `"2MB/../x"`, `"2mb"`).named(hugepages),
		"hugepage_limits.limit":      byNode().named(hugepages),
		"unified": wrong(unsafe,
			`{ key: "cgroup.procs" value: "1" }`, `{ key: "memory/../cgroup.procs" value: "1" }`, `{ key: "" value: "1" }`,
			`{ key: "memory.high" value: "" }`, `{ key: "memory.high" value: "1\000" }`, `{ key: "memory.high" value: `+quoted(4097, "1")+` }`,
		),
	}},
	{[]string{ctrSC}, map[string]judgement{
		"capabilities.add_capabilities":         wrong(unsafe, `""`, `"FLY"`, `"CAP_"`, `"chown,kill"`),
		"capabilities.drop_capabilities":        wrong(unsafe, `""`, `"FLY"`, `"CAP_"`, `"chown,kill"`),
		"capabilities.add_ambient_capabilities": wrong(unsafe, `""`, `"FLY"`, `"CAP_"`, `"chown,kill"`),
		"privileged":                            wrong(unsafe, "true"), // the pod is not
		"namespace_options.pid":                 wrong(ruled, "POD", "NODE", "4", "-1"),
		"run_as_username":                       wrong(unsafe, `"app:root"`, `"a\nb"`, `"a\000"`, `"nobody-knows"`, `"4294967296"`, quoted(1000, "x")),
		"no_new_privs":                          either,
		"masked_paths":                          wrong(kernel, append(aPath, `""`, `"/"`)...),
		"readonly_paths":                        wrong(kernel, append(aPath, `""`, `"/"`)...),
		"apparmor_profile":                      wrong(ruled, `"default"`, `"localhost/"`, quoted(1000, "x")),
	}},
	{[]string{"UpdateContainerResources"}, map[string]judgement{
		"container_id": anID, "windows": wrong(ruled, "{}"), "annotations": unread,
	}},

	{[]string{"StopPodSandbox", "RemovePodSandbox", "PodSandboxStatus", "PodSandboxStats", "PortForward"}, map[string]judgement{"pod_sandbox_id": anID}},
	{[]string{"StartContainer", "StopContainer", "RemoveContainer", "ContainerStatus", "ContainerStats", "ReopenContainerLog", "ExecSync", "Exec", "Attach"}, map[string]judgement{
		"container_id": anID,
	}},
	{[]string{"PodSandboxStatus", "ContainerStatus", "Status", "ImageStatus"}, map[string]judgement{"verbose": either}},
	{[]string{"ListPodSandbox.filter", "ListContainers.filter", "ListPodSandboxStats.filter", "ListContainerStats.filter"}, map[string]judgement{
		"id": anyWord, "label_selector": anyWord,
	}},
	{[]string{"ListPodSandbox.filter", "ListContainers.filter"}, map[string]judgement{"state.state": anyWord}},
	{[]string{"ListContainers.filter", "ListContainerStats.filter"}, map[string]judgement{"pod_sandbox_id": anyWord}},
	{[]string{"StopContainer"}, map[string]judgement{"timeout": wrong(ruled, "-1", "-9223372036854775808")}},
	{[]string{"ExecSync"}, map[string]judgement{"timeout": wrong(ruled, "-1", "-9223372036854775808")}},
	{[]string{"ExecSync", "Exec"}, map[string]judgement{"cmd": wrong(kernel, append(anArg.wrong, `""`)...)}},
	{[]string{"Exec"}, map[string]judgement{"tty": either, "stdin": either, "stdout": either, "stderr": either}},
	{[]string{"Attach"}, map[string]judgement{"tty": wrong(ruled, "true"), "stdin": either, "stdout": either, "stderr": either}},
	{[]string{"PortForward"}, map[string]judgement{"port": wrong(ruled, "0", "-1", "65536", "["+numbers(128)+"]")}},

	{[]string{"Version"}, map[string]judgement{"version": unread}},
	{[]string{"UpdateRuntimeConfig.runtime_config.network_config"}, map[string]judgement{"pod_cidr": wrong(ruled, `"x"`, `"10.0.0.0"`, `"10.0.0.0/33"`, `"10.0.0.0/24,"`, `"10.0.0.0/24 "`)}},

	{[]string{"ListImages.filter.image"}, map[string]judgement{"image": wrong(ruled, refs.wrong[1:]...)}}, // an empty one lists all
	{[]string{"ImageStatus.image", "PullImage.image", "RemoveImage.image"}, map[string]judgement{"image": refs}},
	{[]string{"ListImages.filter.image", "ImageStatus.image", "PullImage.image", "RemoveImage.image"}, map[string]judgement{
		"annotations": unread, "user_specified_image": unread, "runtime_handler": unread, "image_ref": unread,
	}},
	{[]string{"PullImage"}, map[string]judgement{
		"sandbox_config":      unread,
		"auth.username":       free("the registry judges it"),
		"auth.password":       free("the registry judges it"),
		"auth.auth":           wrong(ruled, `"not base64"`, `"bm8gY29sb24="`),
		"auth.server_address": free("it names who may see the others"),
		"auth.identity_token": free("the registry judges it"),
		"auth.registry_token": wrong(unsafe, `"a\nb"`, `"a\000"`),
	}},
}

func inSC(text string) string { return "config { linux { security_context { " + text + " } } }" }

func inLimits(text string) string { return "config { linux { resources { " + text + " } } }" }

// numbers are the first n of them.
func numbers(n int) string {
	var all []string
	for i := range n {
		all = append(all, strconv.Itoa(i+1))
	}
	return strings.Join(all, ",")
}

// manySysctls are more than fit into a message to the runner.
func manySysctls() string {
	var entries []string
	for i := range 40 {
		entries = append(entries, fmt.Sprintf(`{ key: "net.a%d" value: %s }`, i, quoted(1024, "1")))
	}
	return "[" + strings.Join(entries, ",") + "]"
}

type contradiction struct{ what, method, beside, names string }

// contradictions are parts of requests that are right each for itself, and not
// together: with one another, with what the method's request has, or with the pod.
var contradictions = []contradiction{
	{"another host name on the host's network", "RunPodSandbox", inSC("namespace_options { network: NODE }"), "hostname"},
	{"a user namespace and the host's network", "RunPodSandbox", `config { hostname: "$hostname" linux { security_context { namespace_options { network: NODE } } } }`, ns + "network"},
	{"a user namespace and the host's ipc", "RunPodSandbox", inSC("namespace_options { ipc: NODE }"), ns + "ipc"},
	{"a user namespace and the host's pids", "RunPodSandbox", inSC("namespace_options { pid: NODE }"), ns + "pid"},
	{"mappings for the host's user namespace", "RunPodSandbox", inSC("namespace_options { userns_options { mode: NODE } }"), userns + ".uids"},
	{"two mappings", "RunPodSandbox", inSC("namespace_options { userns_options { uids { " + mappedIDs + " } } }"), userns + ".uids"},
	{"a handler without user namespaces", "RunPodSandbox", `runtime_handler: "slow"`, userns},
	{"a port of the host twice", "RunPodSandbox", `config { port_mappings { container_port: 81 host_port: 8080 host_ip: "127.0.0.1" } }`, "port_mappings.host_port"},
	{"a group without a user", "RunPodSandbox", inSC("run_as_group { value: 1 }"), sc + "run_as_group"},
	{"RuntimeDefault with a profile", "RunPodSandbox", inSC(`seccomp { localhost_ref: "/x" }`), sc + "seccomp.localhost_ref"},

	{"a user by id and name", "CreateContainer", inSC(`run_as_user { value: 1 } run_as_username: "root"`), sc + "run_as_username"},
	{"a group without a user", "CreateContainer", inSC("run_as_group { value: 1 }"), sc + "run_as_group"},
	{"a user that the pod does not map", "CreateContainer", inSC("run_as_user { value: 65536 }"), sc + "run_as_user"},
	{"a group that the pod does not map", "CreateContainer", inSC("run_as_user { value: 1 } run_as_group { value: 65536 }"), sc + "run_as_group"},
	{"more groups that the pod does not map", "CreateContainer", inSC("supplemental_groups: 65536"), sc + "supplemental_groups"},
	{"privileged in a pod that is not", "CreateContainer", inSC("privileged: true"), sc + "privileged"},
	{"an ambient capability that is dropped", "CreateContainer", inSC(`capabilities { drop_capabilities: "chown" }`), sc + "capabilities.add_ambient_capabilities"},
	{"another network than the pod's", "CreateContainer", inSC("namespace_options { network: NODE }"), ns + "network"},
	{"another ipc than the pod's", "CreateContainer", inSC("namespace_options { ipc: NODE }"), ns + "ipc"},
	{"the pod's pids where it shares none", "CreateContainer", inSC("namespace_options { pid: NODE }"), ns + "pid"},
	{"a target without an id", "CreateContainer", inSC("namespace_options { pid: TARGET }"), ns + "target_id"},
	{"a target without pid TARGET", "CreateContainer", inSC(`namespace_options { target_id: "$container" }`), ns + "target_id"},
	{"half of the mappings of a mount", "CreateContainer", `config { mounts { container_path: "/m" host_path: "/" uidMappings { ` + mappedIDs + ` } } }`, "mounts.gidMappings"},
	{"recursively read-only and writable", "CreateContainer", `config { mounts { container_path: "/m" host_path: "/" recursive_read_only: true } }`, "mounts.recursive_read_only"},
	{"recursively read-only and propagated", "CreateContainer", `config { mounts { container_path: "/m" host_path: "/" readonly: true recursive_read_only: true propagation: PROPAGATION_HOST_TO_CONTAINER } }`, "mounts.recursive_read_only"},
	{"a mount of an image and of a directory", "CreateContainer", `config { mounts { container_path: "/m" host_path: "/" image { image: "$image" } } }`, "mounts.image"},
	{"a writable mount of an image", "CreateContainer", `config { mounts { container_path: "/m" image { image: "$image" } } }`, "mounts.readonly"},
	{"a propagated mount of an image", "CreateContainer", `config { mounts { container_path: "/m" readonly: true image { image: "$image" } propagation: PROPAGATION_HOST_TO_CONTAINER } }`, "mounts.propagation"},
	{"a way out of an image", "CreateContainer", `config { mounts { container_path: "/m" readonly: true image { image: "$image" } image_sub_path: "a/../../x" } }`, "mounts.image_sub_path"},
	{"Localhost without a profile", "CreateContainer", inSC("seccomp { profile_type: Localhost }"), sc + "seccomp.localhost_ref"},
	{"Localhost without an AppArmor profile", "CreateContainer", inSC("apparmor { profile_type: Localhost }"), sc + "apparmor.localhost_ref"},

	{"swap without a limit of memory", "CreateContainer", inLimits("memory_swap_limit_in_bytes: 8388608"), limits + "memory_swap_limit_in_bytes"},
	{"less memory and swap than memory", "CreateContainer", inLimits("memory_limit_in_bytes: 8388608 memory_swap_limit_in_bytes: 8388607"), limits + "memory_swap_limit_in_bytes"},
	{"a page size twice", "CreateContainer", inLimits("$pagesizes"), limits + "hugepage_limits.page_size"},
	{"less memory and swap than memory", "UpdateContainerResources", "linux { memory_limit_in_bytes: 8388608 memory_swap_limit_in_bytes: 8388607 }", limits + "memory_swap_limit_in_bytes"},
	{"a page size twice", "UpdateContainerResources", "linux { $pagesizes }", limits + "hugepage_limits.page_size"},

	{"a terminal with a standard error apart", "Exec", "tty: true stderr: true", "stderr"},
	{"a terminal with a standard error apart", "Attach", "tty: true stderr: true", "stderr"},
	{"a terminal of a container without", "Attach", "tty: true", "tty"},
}

// plain are the least requests that are right, for a pod that asks for nothing.
var plain = map[string]string{
	"RunPodSandbox":   `config { metadata { name: "plain" namespace: "default" uid: "uid-plain" } }`,
	"CreateContainer": `pod_sandbox_id: "$plain" config { metadata { name: "plain" } image { image: "$image" } }`,
}

// plainContradictions are those with the plain requests.
var plainContradictions = []contradiction{
	{"a sysctl of the host's network", "RunPodSandbox", `config { linux { sysctls { key: "net.core.somaxconn" value: "1" } security_context { namespace_options { network: NODE } } } }`, "linux.sysctls"},
	{"a sysctl of the host's ipc", "RunPodSandbox", `config { linux { sysctls { key: "kernel.msgmax" value: "1" } security_context { namespace_options { ipc: NODE } } } }`, "linux.sysctls"},
	{"more groups than there can be, with its own", "CreateContainer", inSC("supplemental_groups: [" + numbers(1<<16) + "]"), sc + "supplemental_groups"},
	{"a target of another pod", "CreateContainer", inSC(`namespace_options { pid: TARGET target_id: "$container" }`), ns + "target_id"},
	{"mappings in a pod without", "CreateContainer", inSC("namespace_options { " + mappedPod + " }"), userns},
	{"mappings of a mount in a pod without", "CreateContainer", `config { mounts { container_path: "/m" host_path: "/" uidMappings { ` + mappedIDs + ` } } }`, "mounts.uidMappings"},
	{"a log in a pod without", "CreateContainer", `config { log_path: "x.log" }`, "log_path"},
}
