package conformance

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"berth/oci/keeper"
	"berth/test/leak"
)

// trace is what strace has seen a node's own processes do: berthd, the keeper
// and the runner. What an OCI runtime or a plugin does once it is executed, and
// what it executes itself, is not in it.
type trace struct {
	execs  map[string]int // by name of the program
	syncs  int            // fsync, fdatasync and their like
	mounts int            // that were made, attached or not
	files  map[string]written
}

// written is what was done to one file that is kept.
type written struct {
	opens int // for writing
	bytes int64
}

// tracedCalls are the system calls that trace counts, and those that tell whose
// they are.
const tracedCalls = "trace=clone,clone3,fork,vfork,execve,execveat," +
	"fsync,fdatasync,sync,syncfs,sync_file_range,msync," +
	"mount,fsmount,open_tree,openat,openat2,creat,write,writev,pwrite64,pwritev,sendfile,copy_file_range,splice"

// traced returns what the node's processes do while do runs.
func (n *node) traced(t *testing.T, do func()) trace {
	t.Helper()
	file := filepath.Join(t.TempDir(), "strace")
	args := []string{"-f", "-y", "-s", "0", "-e", tracedCalls, "-o", file}
	own := []int{n.berthd.Process.Pid, n.keeper(t), n.runner(t)}
	for _, pid := range own {
		args = append(args, "-p", strconv.Itoa(pid))
	}
	cmd := exec.Command(leak.NeedTool(t, "strace"), args...)
	said, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	threads := threadsOf(own)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(said)
	for range own { // "strace: Process PID attached with N threads"
		if !lines.Scan() {
			t.Fatal("strace has ended")
		}
	}
	do()
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	for lines.Scan() {
	}
	var ended *exec.ExitError
	if err := cmd.Wait(); err != nil && !errors.As(err, &ended) {
		t.Fatal(err)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return readTrace(strings.Split(string(text), "\n"), threads)
}

// threadsOf are the ids of all threads of the processes.
func threadsOf(pids []int) map[int]bool {
	all := map[int]bool{}
	for _, pid := range pids {
		tasks, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		for _, task := range tasks {
			if id, err := strconv.Atoi(task.Name()); err == nil {
				all[id] = true
			}
		}
	}
	return all
}

var (
	lineOfTrace = regexp.MustCompile(`^(\d+) +(.*)$`)
	resumedCall = regexp.MustCompile(`^<\.\.\. \w+ resumed>(.*)$`)
	openedPath  = regexp.MustCompile(`<(/[^>]*)>$`)         // of an open's result
	writtenPath = regexp.MustCompile(`^\w+\(\d+<(/[^>]*)>`) // of a write's descriptor
	programPath = regexp.MustCompile(`^execve\("([^"]*)"`)
)

// readTrace counts in the lines of strace -f -y what own threads and those that
// they begin have done until they execute something else.
func readTrace(lines []string, own map[int]bool) trace {
	tr := trace{execs: map[string]int{}, files: map[string]written{}}
	begun := map[int]string{} // unfinished calls
	for _, line := range lines {
		m := lineOfTrace.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		id, _ := strconv.Atoi(m[1])
		call := m[2]
		if begin, ok := strings.CutSuffix(call, " <unfinished ...>"); ok {
			begun[id] = begin
			continue
		}
		if rest := resumedCall.FindStringSubmatch(call); rest != nil {
			call = begun[id] + rest[1]
			delete(begun, id)
		}
		if own[id] {
			tr.count(id, call, own)
		}
	}
	return tr
}

// count adds one finished call of an own thread.
func (tr *trace) count(id int, call string, own map[int]bool) {
	name, _, _ := strings.Cut(call, "(")
	at := strings.LastIndex(call, " = ")
	if at < 0 {
		return
	}
	result := call[at+3:]
	value, _ := strconv.ParseInt(strings.Fields(strings.SplitN(result, "<", 2)[0])[0], 10, 64)
	if value < 0 {
		return
	}
	switch name {
	case "clone", "clone3", "fork", "vfork":
		own[int(value)] = true
	case "execve", "execveat":
		if m := programPath.FindStringSubmatch(call); m != nil {
			tr.execs[filepath.Base(m[1])]++
		}
		delete(own, id)
	case "fsync", "fdatasync", "sync", "syncfs", "sync_file_range", "msync":
		tr.syncs++
	case "mount", "fsmount":
		tr.mounts++
	case "open_tree":
		if strings.Contains(call, "OPEN_TREE_CLONE") {
			tr.mounts++
		}
	case "openat", "openat2", "creat":
		m := openedPath.FindStringSubmatch(result)
		if m != nil && writes(call) {
			tr.wrote(m[1], written{opens: 1})
		}
	default:
		if m := writtenPath.FindStringSubmatch(call); m != nil {
			tr.wrote(m[1], written{bytes: value})
		}
	}
}

// writes tells whether an open is for writing.
func writes(call string) bool {
	return strings.Contains(call, "O_WRONLY") || strings.Contains(call, "O_RDWR") || strings.HasPrefix(call, "creat")
}

// wrote adds to what was done to a file, unless the kernel only shows it as one.
func (tr *trace) wrote(path string, w written) {
	for _, dir := range []string{"/proc/", "/sys/", "/dev/null", "/dev/pts/", "/dev/ptmx"} {
		if strings.HasPrefix(path, dir) {
			return
		}
	}
	switch filepath.Base(path) {
	case keeper.StdinFIFO, keeper.StdoutFIFO, keeper.StderrFIFO:
		return
	}
	f := tr.files[path]
	tr.files[path] = written{f.opens + w.opens, f.bytes + w.bytes}
}
