package sandbox

import (
	"fmt"
	"slices"
	"testing"

	"github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// The default profile allows what moby's does, call for call and value for value.
func TestDefaultSeccompSaysWhatMobysDoes(t *testing.T) {
	for _, capabilities := range [][]string{nil, {"CAP_SYS_CHROOT"}, {"CAP_SYS_ADMIN", "CAP_SYS_CHROOT", "CAP_BPF"}} {
		spec := &specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: capabilities}}}
		theirs, err := seccomp.GetDefaultProfile(spec)
		if err != nil {
			t.Fatal(err)
		}
		ours, err := defaultSeccomp(spec)
		if err != nil {
			t.Fatal(err)
		}
		if ours.DefaultAction != theirs.DefaultAction || *ours.DefaultErrnoRet != *theirs.DefaultErrnoRet {
			t.Errorf("with %v: by default %v %v, moby's %v %v", capabilities, ours.DefaultAction, *ours.DefaultErrnoRet, theirs.DefaultAction, *theirs.DefaultErrnoRet)
		}
		if with, without := conditions(theirs), conditions(ours); without*3 > with*2 {
			t.Errorf("with %v: %d rules with conditions are left of %d", capabilities, without, with)
		}
		calls := map[string]bool{}
		values := []uint64{1 << 31, 1<<32 - 2, 1<<32 - 1, 1 << 32, 1<<32 + 2, 1<<64 - 1}
		for _, rule := range slices.Concat(theirs.Syscalls, ours.Syscalls) {
			for _, name := range rule.Names {
				calls[name] = true
			}
			for _, arg := range rule.Args {
				for bit := range 64 {
					values = append(values, arg.Value^1<<bit, arg.ValueTwo^1<<bit)
				}
			}
		}
		for i := range uint64(256) {
			values = append(values, i)
		}
		for call := range calls {
			for _, value := range values {
				if got, want := verdict(ours, call, value), verdict(theirs, call, value); got != want {
					t.Errorf("with %v: %s(%#x): %s, moby's profile: %s", capabilities, call, value, got, want)
				}
			}
		}
		if slices.Contains(ours.Architectures, specs.ArchX32) || len(ours.Architectures) == 0 {
			t.Errorf("architectures %v", ours.Architectures)
		}
	}
}

func conditions(rules *specs.LinuxSeccomp) (n int) {
	for _, rule := range rules.Syscalls {
		n += len(rule.Args)
	}
	return n
}

// verdict is what becomes of a call whose first two arguments have this value. The
// profile has no rule that a later one contradicts.
func verdict(rules *specs.LinuxSeccomp, call string, value uint64) string {
	for _, rule := range rules.Syscalls {
		if !slices.Contains(rule.Names, call) || slices.ContainsFunc(rule.Args, func(arg specs.LinuxSeccompArg) bool { return !holds(arg, value) }) {
			continue
		}
		if rule.ErrnoRet != nil {
			return fmt.Sprint(rule.Action, " ", *rule.ErrnoRet)
		}
		return string(rule.Action)
	}
	return "default"
}

func holds(arg specs.LinuxSeccompArg, value uint64) bool {
	switch arg.Op {
	case specs.OpEqualTo:
		return value == arg.Value
	case specs.OpLessThan:
		return value < arg.Value
	case specs.OpMaskedEqual:
		return value&arg.Value == arg.ValueTwo
	}
	panic("the profile compares in a new way: " + arg.Op)
}
