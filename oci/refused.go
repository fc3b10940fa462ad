package oci

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"unicode"

	"golang.org/x/sys/unix"
)

// A program that execve refuses (E2BIG, ENOEXEC, a missing interpreter) is refused
// when its runtime has said already that the container runs: the container ends, and
// why, the runtime's last process has written to the container's own output.

// refusal is what a process that never executed its program said last, from the log
// of the container in dir; empty if there is none.
func refusal(dir string) string {
	path, err := os.Readlink(filepath.Join(dir, logLink))
	if err != nil {
		return ""
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return ""
	}
	log := os.NewFile(uintptr(fd), path)
	defer log.Close()
	text, err := io.ReadAll(io.LimitReader(log, refusalRead))
	if err != nil {
		return ""
	}
	return lastWords(string(text))
}

// refusalRead bounds how much of the log is looked at, in bytes: nothing but the
// refusal can be in it.
const refusalRead = 16 << 10

// lastWords is the last line in a CRI log: what is said there, where it is in JSON,
// which has colours around it on a terminal.
func lastWords(log string) string {
	lines := strings.Split(strings.TrimSpace(log), "\n")
	fields := strings.SplitN(lines[len(lines)-1], " ", 4) // time, stream, tag, text
	if len(fields) < 4 {
		return ""
	}
	said := strings.TrimSpace(fields[3])
	var inJSON struct{ Msg string }
	from, to := strings.IndexByte(said, '{'), strings.LastIndexByte(said, '}')
	if from >= 0 && from < to && json.Unmarshal([]byte(said[from:to+1]), &inJSON) == nil && inJSON.Msg != "" {
		said = inJSON.Msg
	}
	said = strings.Map(printable, strings.ToValidUTF8(said, ""))
	return fmt.Sprintf("the program could not be executed: %s", shorten(said, msgKept))
}

// printable drops what is no text: the program's name comes from the image.
func printable(r rune) rune {
	if !unicode.IsPrint(r) {
		return -1
	}
	return r
}
