package sandbox

import (
	"math"
	"math/bits"
	"slices"

	"github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// defaultSeccomp is moby's profile, made cheap: every start and every exec
// compiles it, which with the profile as it comes is half of what runc needs.
//
// It leaves out x32. Kernels of distributions have it off, and who tries it is
// killed.
func defaultSeccomp(spec *specs.Spec) (*specs.LinuxSeccomp, error) {
	rules, err := seccomp.GetDefaultProfile(spec)
	if err != nil {
		return nil, err
	}
	rules.Architectures = slices.DeleteFunc(rules.Architectures, func(a specs.Arch) bool { return a == specs.ArchX32 })
	rules.Syscalls = joinEqual(rules.Syscalls)
	return rules, nil
}

// joinEqual says the same in fewer rules: those that let the same argument of the
// same call have one value each become rules for values that differ only in
// certain bits. Rules with conditions are by far the most expensive ones.
func joinEqual(rules []specs.LinuxSyscall) []specs.LinuxSyscall {
	rules = slices.Clone(rules)
	for bit := range bits.UintSize {
		for i := 0; i < len(rules); i++ {
			j := slices.IndexFunc(rules[i+1:], func(other specs.LinuxSyscall) bool {
				return differ(rules[i], other) == 1<<bit
			})
			if j < 0 {
				continue
			}
			arg := maskedArg(rules[i].Args[0])
			arg.Value &^= 1 << bit    // the mask
			arg.ValueTwo &^= 1 << bit // what is left by it
			rules[i].Args = []specs.LinuxSeccompArg{arg}
			rules = slices.Delete(rules, i+1+j, i+2+j)
		}
	}
	return rules
}

// differ returns the bits by which two rules that are otherwise alike compare with
// another value; 0 if they cannot be joined.
func differ(a, b specs.LinuxSyscall) uint64 {
	sameErrno := a.ErrnoRet == b.ErrnoRet || a.ErrnoRet != nil && b.ErrnoRet != nil && *a.ErrnoRet == *b.ErrnoRet
	if !slices.Equal(a.Names, b.Names) || a.Action != b.Action || !sameErrno || len(a.Args) != 1 || len(b.Args) != 1 {
		return 0
	}
	x, y := maskedArg(a.Args[0]), maskedArg(b.Args[0])
	if x.Op != specs.OpMaskedEqual || y.Op != specs.OpMaskedEqual || x.Index != y.Index || x.Value != y.Value {
		return 0
	}
	return x.ValueTwo ^ y.ValueTwo
}

// maskedArg is arg as a comparison under a mask, if it is one for equality.
func maskedArg(arg specs.LinuxSeccompArg) specs.LinuxSeccompArg {
	if arg.Op == specs.OpEqualTo {
		arg.Op, arg.Value, arg.ValueTwo = specs.OpMaskedEqual, math.MaxUint64, arg.Value
	}
	return arg
}
