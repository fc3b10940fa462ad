package oci

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Guards against a reason that only the log has: a runtime says that the container
// runs before execve has taken its program.
func TestProgramThatIsRefusedLate(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, r *Runtime) {
		for name, text := range map[string]string{"garbage": "\x01\x02\x00", "loose": "#!/no/such/interpreter\n"} {
			if err := os.WriteFile(filepath.Join(n.root, "bin", name), []byte(text), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		long := []string{"/bin/true"}
		for range 40 { // more than any stack's quarter
			long = append(long, strings.Repeat("x", 120_000))
		}
		for _, tt := range []struct {
			args []string
			want string // a part of the reason, in lower case; empty: it is executed
		}{
			{[]string{"/bin/garbage"}, "exec format error"},
			{[]string{"/bin/loose"}, "no such file or directory"},
			{long, "argument list too long"},
			{[]string{"sh", "-c", "echo exec format error >&2; exit 1"}, ""},
		} {
			for _, tty := range []bool{false, true} {
				c := n.container(r, "")
				c.spec.Process.Args, c.spec.Process.Terminal = tt.args, tty
				c.start()
				exit, err := r.Wait(n.ctx, c.Container)
				if err != nil {
					t.Fatal(err)
				}
				got := strings.ToLower(exit.Refused)
				if exit.Code == 0 || !strings.Contains(got, tt.want) || (got == "") != (tt.want == "") || strings.Contains(got, `"level"`) {
					t.Errorf("%s, terminal %v: code %d, %q, want %q", tt.args[0], tty, exit.Code, exit.Refused, tt.want)
				}
				c.remove()
			}
		}
	})
}
