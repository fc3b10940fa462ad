package sandbox

import (
	"errors"
	"testing"
	"time"

	"berth/oci"
)

// A start of which nobody can tell whether its program has run is no StartError:
// it is told as what it is, also when its clean-up takes a while and a daemon dies
// meanwhile.
func TestUnclearStartEndsUnknown(t *testing.T) {
	quiet(t)
	inBubble(t, func(t *testing.T, m *machine) {
		m.must("run", "create")
		m.world.cut = true
		m.intend(func(_ int, name string, after bool) fate {
			if !after && name == "runtime.Remove" {
				return failNow
			}
			return proceed
		})
		if err, _ := m.do("start"); !errors.Is(err, oci.ErrExitUnknown) {
			t.Errorf("answer: %v", err)
		}
		m.crash()
		m.intend(nil)
		m.reopen()
		pass(10 * time.Minute)
		rec := m.container("x").record()
		if rec.State != containerExited || rec.ExitCode != codeUnknown || rec.Reason != reasonUnknown || rec.Message != m.world.cutError().Error() {
			t.Errorf("it is %s with %d, %s: %s", rec.State, rec.ExitCode, rec.Reason, rec.Message)
		}
		if m.world.starts != 0 {
			t.Errorf("its program was begun %d times", m.world.starts)
		}
		m.check()
		m.must("remove")
	})
}
