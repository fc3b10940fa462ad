package expect

import (
	"bytes"
	"flag"
	"testing"

	"k8s.io/klog/v2"
)

// Log sends the log, all of it, to the returned buffer until the test ends. Call
// klog.Flush before reading it.
func Log(t *testing.T) *bytes.Buffer {
	t.Helper()
	state := klog.CaptureState()
	t.Cleanup(state.Restore)
	var flags flag.FlagSet
	klog.InitFlags(&flags)
	for name, value := range map[string]string{"v": "10", "logtostderr": "false", "alsologtostderr": "false", "stderrthreshold": "FATAL", "one_output": "true"} {
		if err := flags.Set(name, value); err != nil {
			t.Fatal(err)
		}
	}
	buf := &bytes.Buffer{}
	klog.SetOutput(buf)
	return buf
}
