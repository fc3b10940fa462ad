//go:build node

package node

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// figures is a part of the kubelet's summary.
type figures map[string]any

// at is the number at a path of names with dots, -1 where there is none.
func (f figures) at(path string) float64 {
	var v any = map[string]any(f)
	for name := range strings.SplitSeq(path, ".") {
		m, _ := v.(map[string]any)
		v = m[name]
	}
	number, ok := v.(float64)
	if !ok {
		return -1
	}
	return number
}

func (f figures) list(name string) []figures {
	all, _ := f[name].([]any)
	var list []figures
	for _, v := range all {
		if m, ok := v.(map[string]any); ok {
			list = append(list, m)
		}
	}
	return list
}

// missing are the paths that have no number.
func (f figures) missing(paths string) []string {
	var none []string
	for _, path := range strings.Fields(paths) {
		if f.at(path) < 0 {
			none = append(none, path)
		}
	}
	return none
}

// What a complete summary has, with times left out. A container's memory has
// availableBytes where it has a limit.
const (
	ofNode = "cpu.usageNanoCores cpu.usageCoreNanoSeconds memory.availableBytes memory.workingSetBytes memory.rssBytes " +
		"fs.availableBytes fs.capacityBytes fs.usedBytes fs.inodes fs.inodesFree fs.inodesUsed " +
		"runtime.imageFs.availableBytes runtime.imageFs.capacityBytes runtime.imageFs.usedBytes runtime.imageFs.inodesFree " +
		"runtime.containerFs.usedBytes rlimit.maxpid rlimit.curproc"
	ofPod = "cpu.usageNanoCores cpu.usageCoreNanoSeconds memory.usageBytes memory.workingSetBytes memory.rssBytes " +
		"memory.pageFaults memory.majorPageFaults ephemeral-storage.usedBytes ephemeral-storage.availableBytes"
	// What only the runtime knows of a pod.
	ofPodByRuntime = "network.rxBytes network.rxErrors network.txBytes network.txErrors process_stats.process_count"
	ofContainer    = "cpu.usageNanoCores cpu.usageCoreNanoSeconds memory.usageBytes memory.workingSetBytes memory.rssBytes " +
		"memory.pageFaults memory.majorPageFaults swap.swapUsageBytes " +
		"rootfs.availableBytes rootfs.capacityBytes rootfs.usedBytes rootfs.inodesUsed logs.usedBytes logs.inodesUsed"
)

// summary is one pod's part of the whole, and that of its containers by name.
func summary(t *testing.T, name string) (node, pod figures, containers map[string]figures) {
	t.Helper()
	all := getJSON[figures](t, "/stats/summary")
	node, _ = all["node"].(map[string]any)
	containers = map[string]figures{}
	for _, p := range all.list("pods") {
		if ref, _ := p["podRef"].(map[string]any); ref["name"] != name+"-node" {
			continue
		}
		for _, c := range p.list("containers") {
			containers[fmt.Sprint(c["name"])] = c
		}
		return node, p, containers
	}
	return node, figures{}, containers
}

// testSummary reads what eviction decides by: it is complete, and true.
func testSummary(t *testing.T, n *node) {
	podPaths := ofPod
	if n.statsFromCRI {
		podPaths += " " + ofPodByRuntime
	}
	// Rates need two looks, ten seconds apart.
	withinAll(t, "the summary is complete", func() []string {
		node, pod, containers := summary(t, "web")
		return slices.Concat(node.missing(ofNode), pod.missing(podPaths),
			containers["server"].missing(ofContainer), containers["peer"].missing(ofContainer))
	})

	_, before, _ := summary(t, "web")
	runIn(t, "web", "server", "dd if=/dev/zero of=/tmp/big bs=1M count=8")
	runIn(t, "web", "server", "dd if=/dev/zero of=/scratch/big bs=1M count=4")
	address := n.pod(t, "web").Status.PodIP
	for range 20 {
		page(address)
	}
	withinAll(t, "the summary shows what was done", func() []string { return n.untrue(t, before) })
	n.testSummaryLists(t)
}

// withinAll asks until nothing is missing.
func withinAll(t *testing.T, what string, ask func() (missing []string)) {
	t.Helper()
	var missing []string
	t.Cleanup(func() {
		if len(missing) > 0 {
			t.Logf("%s: but for %q", what, missing)
		}
	})
	within(t, 2*time.Minute, what, func() bool {
		missing = ask()
		return len(missing) == 0
	})
}

// untrue is what the summary says wrong of the web server, which may have 64 MiB of
// memory, and has written 8 MiB to its own files and 4 to its pod's, and served
// 20 pages.
func (n *node) untrue(t *testing.T, before figures) (wrong []string) {
	t.Helper()
	_, pod, containers := summary(t, "web")
	server := containers["server"]
	for what, is := range map[string]bool{
		"the container's files":  server.at("rootfs.usedBytes") >= 8<<20,
		"the pod's files":        pod.at("ephemeral-storage.usedBytes") >= 12<<20,
		"CPU":                    pod.at("cpu.usageCoreNanoSeconds") > before.at("cpu.usageCoreNanoSeconds"),
		"the container's limit":  server.at("memory.availableBytes") > 0 && server.at("memory.availableBytes") <= 64<<20,
		"memory below the limit": server.at("memory.workingSetBytes") > 0 && server.at("memory.workingSetBytes") <= 64<<20,
		"received bytes":         !n.statsFromCRI || pod.at("network.rxBytes") > before.at("network.rxBytes"),
		"sent bytes":             !n.statsFromCRI || pod.at("network.txBytes") > before.at("network.txBytes")+20*float64(len(hello)),
		"processes":              !n.statsFromCRI || pod.at("process_stats.process_count") >= 2,
	} {
		if !is {
			wrong = append(wrong, what)
		}
	}
	return wrong
}

// testSummaryLists finds each pod that runs, and none that has ended.
func (n *node) testSummaryLists(t *testing.T) {
	t.Helper()
	names := map[string]bool{}
	for _, p := range getJSON[figures](t, "/stats/summary").list("pods") {
		ref, _ := p["podRef"].(map[string]any)
		names[strings.TrimSuffix(fmt.Sprint(ref["name"]), "-node")] = true
	}
	for _, name := range steady {
		if !names[name] {
			t.Errorf("the summary has no %s, only %v", name, names)
		}
	}
	for _, name := range []string{"job", "oom"} {
		if names[name] {
			t.Errorf("%s has ended, and the summary has it", name)
		}
	}
}

// testEviction has a pod that has written more than it may. The kubelet decides by
// the summary, but never evicts a pod whose manifest is a file: it says so.
func testEviction(t *testing.T, n *node) {
	within(t, time.Minute, "the kubelet wants to evict the greedy pod", func() bool {
		text, err := os.ReadFile(n.kubelet.log)
		if err != nil {
			t.Fatal(err)
		}
		wanted := regexp.MustCompile(`cannot evict a critical pod" pod="default/(\S+)-node"`).FindAllStringSubmatch(string(text), -1)
		for _, pod := range wanted {
			if pod[1] != "greedy" {
				t.Fatalf("the kubelet wants to evict %s", pod[1])
			}
		}
		return len(wanted) > 0
	})
}

// testMetrics looks at what is scraped. Resource metrics come from the runtime's
// statistics in any case; cAdvisor's of pods come from cgroups, or not at all.
func testMetrics(t *testing.T, n *node) {
	const of = `\{container="server",namespace="default",pod="web-node"\} `
	wantSeries(t, "/metrics/resource", []string{
		`container_cpu_usage_seconds_total` + of + `[0-9.e+-]+`,
		`container_memory_working_set_bytes` + of + `[1-9]`,
		`container_start_time_seconds` + of + `[1-9]`,
		`pod_cpu_usage_seconds_total\{namespace="default",pod="web-node"\} [0-9.e+-]+`,
		`pod_memory_working_set_bytes\{namespace="default",pod="web-node"\} [1-9]`,
		`(?m)^resource_scrape_error 0$`,
	})
	cadvisor := []string{`machine_memory_bytes\{`}
	if !n.statsFromCRI {
		cadvisor = append(cadvisor, `container_memory_working_set_bytes\{.*namespace="default",pod="web-node"\} [1-9]`)
	}
	wantSeries(t, "/metrics/cadvisor", cadvisor)
}

// wantSeries fails t unless a page of metrics matches each of the patterns.
func wantSeries(t *testing.T, path string, patterns []string) {
	t.Helper()
	text := get(t, path)
	for _, pattern := range patterns {
		if !regexp.MustCompile(pattern).Match(text) {
			t.Errorf("%s has no %s", path, pattern)
		}
	}
}

// metric is the sum of a metric of the kubelet itself, over all its labels.
func metric(t *testing.T, name string) (sum float64) {
	t.Helper()
	lines := regexp.MustCompile(`(?m)^`+name+`(?:\{.*\})? (\S+)`).FindAllStringSubmatch(string(get(t, "/metrics")), -1)
	for _, line := range lines {
		value, err := strconv.ParseFloat(line[1], 64)
		if err != nil {
			t.Fatal(err)
		}
		sum += value
	}
	return sum
}
