package conformance

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// figures is where the costs of a pod stand, for people and for this test.
const figures = "../../docs/performance.md"

// What a pod with one container costs, from its start to its removal, does not
// grow by accident: whoever adds to it changes the figure in the documentation.
func TestCostOfAPod(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		n.pull(t, n.busybox)
		n.lifeOfAPod(t) // what the node makes once is there after it
		others := 0
		tr := n.traced(t, func() { others = n.lifeOfAPod(t) })

		plugins, runtimes := tr.executed("bridge", "portmap"), tr.executed(n.handler)
		got := map[string]int{
			"CNI plugins executed":             plugins,
			"OCI runtimes executed":            runtimes,
			"other programs executed":          tr.executed(slices.Collect(maps.Keys(tr.execs))...) - plugins - runtimes,
			"files or directories synced":      tr.syncs,
			"mounts made":                      tr.mounts,
			"processes beside the container's": others,
		}
		bytes := int64(0)
		mirror := filepath.Join(n.data, "pods")
		for path, w := range tr.files {
			if filepath.Dir(path) != mirror { // that is written now and then, in the background
				got["files written"] += w.opens
				bytes += w.bytes
			}
		}
		got["kilobytes written"] = int(bytes+500) / 1000 // paths and times are not always as long
		if want := readFigures(t); !maps.Equal(got, want) {
			for _, what := range slices.Sorted(maps.Keys(got)) {
				t.Logf("%s: %d, in %s: %d", what, got[what], figures, want[what])
			}
			for _, path := range slices.Sorted(maps.Keys(tr.files)) {
				t.Logf("%d × %s, %d bytes", tr.files[path].opens, path, tr.files[path].bytes)
			}
			t.Errorf("a pod does not cost what it did: executed %v", tr.execs)
		}
	})
}

// lifeOfAPod starts and removes a pod with one container and returns how many
// processes the pod has beside the container's.
func (n *node) lifeOfAPod(t *testing.T) (others int) {
	t.Helper()
	before := n.children(t)
	pod := n.runPod(t, podConfig(t, "web"))
	ctr := n.startContainer(t, pod, n.shell("main", forever))
	n.awaitReady(t, ctr)
	others = n.children(t) - before - 1
	n.stopContainer(t, ctr, 10)
	if _, err := n.RemoveContainer(t.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: ctr}); err != nil {
		t.Fatal(err)
	}
	n.stopPod(t, pod)
	n.removePod(t, pod)
	return others
}

// children counts those of berthd, the keeper and the runner.
func (n *node) children(t *testing.T) int {
	return len(n.processes(n.berthd.Process.Pid)) + len(n.processes(n.keeper(t))) + len(n.processes(n.runner(t)))
}

func (tr trace) executed(programs ...string) (sum int) {
	for _, p := range programs {
		sum += tr.execs[p]
	}
	return sum
}

var rowOfFigures = regexp.MustCompile(`(?m)^\| ([a-zA-Z' ]+) \| (\d+) \|$`)

// readFigures are the rows of the table of costs.
func readFigures(t *testing.T) map[string]int {
	t.Helper()
	text, err := os.ReadFile(figures)
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(text), "| per pod | |\n")
	table, _, _ = strings.Cut(table, "\n\n")
	rows := map[string]int{}
	for _, row := range rowOfFigures.FindAllStringSubmatch(table, -1) {
		rows[row[1]], _ = strconv.Atoi(row[2])
	}
	return rows
}
