package conformance

import (
	"os"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/test/expect"
)

func TestLogFormat(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		_, id := n.running(t, `echo one; echo; echo two >&2; sleep 0.2; printf ' x  y '`)
		n.exited(t, id)
		entries := readLog(t, n.container(t, id).GetLogPath())
		var stdout []string
		for i, e := range entries {
			if i > 0 && e.time.Before(entries[i-1].time) && e.stream == entries[i-1].stream {
				t.Errorf("entry %d is older than the one before it", i)
			}
			if e.stream == "stdout" {
				stdout = append(stdout, e.tag+e.content)
			}
		}
		// What has no newline is a part, also at the end.
		if want := []string{"Fone", "F", "P x  y "}; !slices.Equal(stdout, want) {
			t.Errorf("stdout %q, want %q", stdout, want)
		}
		if got := n.output(t, id, "stderr"); got != "two\n" {
			t.Errorf("stderr %q", got)
		}
	})
}

func TestLongLineIsWrittenInParts(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		_, id := n.running(t, `head -c 300000 /dev/zero | tr '\0' x; echo end`)
		n.exited(t, id)
		if got, want := n.output(t, id, "stdout"), strings.Repeat("x", 300000)+"end\n"; got != want {
			t.Errorf("%d bytes came out, want %d", len(got), len(want))
		}
		entries := readLog(t, n.container(t, id).GetLogPath())
		if last := entries[len(entries)-1]; len(entries) < 2 || entries[0].tag != "P" || last.tag != "F" {
			t.Errorf("%d entries, the first %s, the last %s", len(entries), entries[0].tag, last.tag)
		}
	})
}

// The kubelet follows a log until the container is not running: what is written
// after that nobody reads.
func TestLogIsCompleteWhenExitedIsSeen(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		_, id := n.running(t, `seq 1 200000; echo last >&2`)
		log := n.container(t, id).GetLogPath()
		if _, err := os.Stat(log); err != nil {
			t.Errorf("no log when StartContainer returns: %v", err)
		}
		n.exited(t, id)
		if got := strings.Count(n.output(t, id, "stdout"), "\n"); got != 200000 {
			t.Errorf("%d lines when it is seen EXITED, want 200000", got)
		}
		if got := n.output(t, id, "stderr"); got != "last\n" {
			t.Errorf("stderr is %q when it is seen EXITED", got)
		}
	})
}

func TestReopenContainerLog(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		_, id := n.running(t, `i=0; trap 'exit 0' TERM; while :; do i=$((i+1)); echo $i; sleep 0.01; done`)
		log := n.container(t, id).GetLogPath()
		grown := func() bool { info, err := os.Stat(log); return err == nil && info.Size() > 0 }
		eventually(t, "the log grows", grown)
		rotated := log + ".20261124-120000"
		if err := os.Rename(log, rotated); err != nil {
			t.Fatal(err)
		}
		if _, err := n.ReopenContainerLog(t.Context(), &runtimeapi.ReopenContainerLogRequest{ContainerId: id}); err != nil {
			t.Fatal(err)
		}
		old, err := os.ReadFile(rotated)
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "the new log grows", grown)
		n.stopContainer(t, id, 10)
		if now, _ := os.ReadFile(rotated); len(now) != len(old) {
			t.Error("the old log grew after it was rotated")
		}
		wantCounting(t, append(readLog(t, rotated), readLog(t, log)...)) // over both
		_, err = n.ReopenContainerLog(t.Context(), &runtimeapi.ReopenContainerLogRequest{ContainerId: id})
		expect.Code(t, "log of an ended container", err, codes.FailedPrecondition)
	})
}

// On an error there is no new log.
func TestReopenThatFailsMakesNoFile(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, n *node) {
		_, id := n.running(t, forever)
		n.awaitReady(t, id)
		n.stopContainer(t, id, 10)
		log := n.container(t, id).GetLogPath()
		if err := os.Rename(log, log+".1"); err != nil {
			t.Fatal(err)
		}
		if _, err := n.ReopenContainerLog(t.Context(), &runtimeapi.ReopenContainerLogRequest{ContainerId: id}); err == nil {
			t.Error("the log of an ended container was reopened")
		}
		if _, err := os.Stat(log); err == nil {
			t.Error("there is a new log")
		}
	})
}
