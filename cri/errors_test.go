package cri

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"berth/cri/admin"
	"berth/image"
	"berth/sandbox"
)

func TestErrorTable(t *testing.T) {
	for _, test := range []struct {
		name string
		err  error
		code codes.Code
		text string
	}{
		{"unknown pod", fmt.Errorf("pod abc: %w", sandbox.ErrNotFound), codes.NotFound, "pod abc: not found"},
		{"unknown image", fmt.Errorf("busybox:9: %w", image.ErrNotFound), codes.NotFound, "busybox:9: image not found"},
		{"bad reference", fmt.Errorf("%w: A:B:C", image.ErrInvalidReference), codes.InvalidArgument, "invalid image reference: A:B:C"},
		{"an image for another machine", fmt.Errorf("pull x: %w: it is for arm64", image.ErrInvalidImage), codes.FailedPrecondition, "pull x: invalid image: it is for arm64"},
		{"a kernel too old", fmt.Errorf("mount root: %w: lowerdir+", image.ErrNotSupported), codes.FailedPrecondition, "mount root: not supported by this kernel: lowerdir+"},
		{"bad field", fmt.Errorf("create container: %w", &sandbox.InvalidError{Field: "tty", Reason: "no"}), codes.InvalidArgument, "create container: tty: no"},
		{"stopped pod", fmt.Errorf("create: %w", sandbox.ErrNotReady), codes.FailedPrecondition, "create: pod is not ready"},
		{"stopped container", sandbox.ErrNotRunning, codes.FailedPrecondition, sandbox.ErrNotRunning.Error()},
		{"wrong state", sandbox.ErrIllegal, codes.FailedPrecondition, sandbox.ErrIllegal.Error()},
		{"pre-empted", sandbox.ErrPreempted, codes.Aborted, sandbox.ErrPreempted.Error()},
		{"daemon stops", sandbox.ErrClosed, codes.Unavailable, sandbox.ErrClosed.Error()},
		{"an exec under which a process of ours died", fmt.Errorf("exec: %w", sandbox.ErrInterrupted), codes.Unavailable,
			"exec: interrupted: one of Berth's processes died meanwhile; the command may have run"},
		{"an inner deadline", fmt.Errorf("cni add: %w", context.DeadlineExceeded), codes.DeadlineExceeded, "cni add: context deadline exceeded"},
		{"anything else", errors.New("runc: no such file"), codes.Unknown, "runc: no such file"},
		{"pre-empted in a mount", fmt.Errorf("%w: %w: %w", sandbox.ErrPreempted, sandbox.ErrImageMount, context.Canceled), codes.Aborted,
			"pre-empted by a stop or remove: image cannot be mounted: context canceled"},
		{"a quotation", fmt.Errorf("pod %q: %w", strings.Repeat("x", maxText), sandbox.ErrNotFound), codes.NotFound,
			`pod "` + strings.Repeat("x", 1016) + " … " + strings.Repeat("x", 1009) + `": not found`},
		{"a status", status.Error(codes.DataLoss, "gone"), codes.DataLoss, "gone"},

		// The kubelet knows these by how their text begins, and only with Unknown.
		{"image volume", fmt.Errorf("create x: %w: %w", sandbox.ErrImageMount, image.ErrNotFound), codes.Unknown,
			"ImageVolumeMountFailed: create x: image cannot be mounted: image not found"},
		{"an image volume that is no image", fmt.Errorf("create x: %w: %w", sandbox.ErrImageMount, image.ErrInvalidImage), codes.Unknown,
			"ImageVolumeMountFailed: create x: image cannot be mounted: invalid image"},
		{"registry down", fmt.Errorf("pull x: %w", image.ErrRegistryUnavailable), codes.Unknown, "RegistryUnavailable: pull x: registry is unavailable"},
		{"registry slow", fmt.Errorf("%w: %w", image.ErrRegistryUnavailable, context.DeadlineExceeded), codes.Unknown,
			"RegistryUnavailable: registry is unavailable: context deadline exceeded"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := status.Convert(toStatus(context.Background(), test.err))
			if got.Code() != test.code || got.Message() != test.text {
				t.Errorf("got %v %q, want %v %q", got.Code(), got.Message(), test.code, test.text)
			}
		})
	}
	if err := toStatus(context.Background(), nil); err != nil {
		t.Errorf("no error became %v", err)
	}
}

// CRI has no code for it, and berth must tell it from other failures.
func TestNoProgramHasADetail(t *testing.T) {
	err := toStatus(t.Context(), fmt.Errorf("start: %w: crun says so", sandbox.ErrNoProgram))
	s := status.Convert(err)
	details := s.Details()
	if s.Code() != codes.Unknown || len(details) != 1 {
		t.Fatalf("%v, details %v", err, details)
	}
	if said, ok := details[0].(*wrapperspb.StringValue); !ok || said.GetValue() != admin.NoProgram {
		t.Errorf("detail %v", details[0])
	}
}

// Whoever gives callers of package image or sandbox one more error to tell apart
// decides here which code it is.
func TestEveryErrorHasACode(t *testing.T) {
	table, err := os.ReadFile("errors.go")
	if err != nil {
		t.Fatal(err)
	}
	reasons := []string{"sandbox.ErrNoSeccomp", "sandbox.ErrNoAppArmor"} // within an InvalidError
	declared := regexp.MustCompile(`(?m)^(?:var |\t)(Err[A-Z]\w*) += `)
	for _, pkg := range []string{"image", "sandbox"} {
		files, err := filepath.Glob("../" + pkg + "/*.go")
		if err != nil {
			t.Fatal(err)
		}
		found := 0
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for _, match := range declared.FindAllSubmatch(text, -1) {
				found++
				name := pkg + "." + string(match[1])
				if !slices.Contains(reasons, name) && !bytes.Contains(table, []byte("{"+name+", codes.")) {
					t.Errorf("%s has no row in errorTable", name)
				}
			}
		}
		if found == 0 {
			t.Errorf("package %s declares no errors", pkg)
		}
	}
}

// A pull that its caller gave up is not the registry's fault.
func TestCallersDeadlineComesFirst(t *testing.T) {
	late, cancel := context.WithTimeout(context.Background(), 0)
	defer cancel()
	gone, cancelNow := context.WithCancel(context.Background())
	cancelNow()
	err := fmt.Errorf("%w: %w", image.ErrRegistryUnavailable, context.DeadlineExceeded)
	if code := status.Code(toStatus(late, err)); code != codes.DeadlineExceeded {
		t.Errorf("after the call's deadline: %v", code)
	}
	if code := status.Code(toStatus(gone, err)); code != codes.Canceled {
		t.Errorf("after the call was cancelled: %v", code)
	}
}
