package runner

import (
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// What a successor finds of a chunk, whatever its predecessor had done when it
// was killed.
func TestJournalAsASuccessorFindsIt(t *testing.T) {
	st := &stream{name: stderrName, sink: &sink{dir: "/var/log", stat: unix.Stat_t{Dev: 3, Ino: 4}, size: 50}}
	for _, length := range []int{1, canarySize - 1, canarySize, canarySize + 1, chunkSize} {
		text := strings.Repeat("x", length)
		read := func(j *journal) []byte {
			buf := j.expect(st, length)
			copy(buf, text)
			return buf
		}
		for _, test := range []struct {
			name string
			do   func(*journal)
			left bool
		}{
			{"nothing", func(*journal) {}, false},
			{"before the read", func(j *journal) { mustDiffer(j, st, length) }, false},
			{"after the read", func(j *journal) { read(j) }, true},
			{"with its length", func(j *journal) { read(j); j.have(length) }, true},
			{"written", func(j *journal) { read(j); j.have(length); j.done() }, false},
			{"a read of nothing", func(j *journal) { j.expect(st, length); j.have(0) }, false},
			{"a read that failed", func(j *journal) { j.expect(st, length); j.have(-1) }, false},
			{"one written, the next before its read", func(j *journal) {
				read(j)
				j.have(length)
				j.done()
				mustDiffer(j, st, length)
			}, false},
		} {
			path := filepath.Join(t.TempDir(), "journal")
			dead := openTestJournal(t, path)
			test.do(dead)
			unlock(t, dead)
			left, ok := openTestJournal(t, path).left()
			if ok != test.left {
				t.Errorf("%d bytes, %s: left %v, want %v", length, test.name, ok, test.left)
			}
			if ok && (string(left.bytes) != text || left.stream != stderrName || left.dir != "/var/log" ||
				left.dev != 3 || left.ino != 4 || left.size != 50) {
				t.Errorf("%d bytes, %s: left %+v", length, test.name, left)
			}
		}
	}
}

// mustDiffer expects a chunk whose canary is not what is read: one of a byte is
// that in one of 256 cases, a kill at that very moment would lose the byte.
func mustDiffer(j *journal, st *stream, length int) {
	for {
		if buf := j.expect(st, length); buf[length-1] != 'x' {
			return
		}
	}
}

// A short read of a chunk counts as many bytes as it read.
func TestJournalOfAShortRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	j := openTestJournal(t, path)
	copy(j.expect(&stream{name: stdoutName, sink: &sink{}}, 100), "short")
	j.have(5)
	if left, ok := j.left(); !ok || string(left.bytes) != "short" || left.stream != stdoutName {
		t.Errorf("left %+v, %v", left, ok)
	}
}

// What is in the file may be anything after a crash of the machine, or an older
// Berth's.
func TestJournalOfGarbage(t *testing.T) {
	for name, spoil := range map[string]func(*journalHeader){
		"phase":         func(h *journalHeader) { h.phase = 77 },
		"length":        func(h *journalHeader) { h.want = chunkSize + 1 },
		"no length":     func(h *journalHeader) { h.want = 0 },
		"path's length": func(h *journalHeader) { h.dirLen = 1 << 20 },
	} {
		j := openTestJournal(t, filepath.Join(t.TempDir(), "journal"))
		copy(j.expect(&stream{name: stdoutName, sink: &sink{}}, 100), "text")
		j.have(4)
		spoil(j.head)
		if left, ok := j.left(); ok {
			t.Errorf("%s: left %+v", name, left)
		}
	}
}

// unlock does what the death of a journal's owner does: the mapping holds the
// lock as well as the file.
func unlock(t *testing.T, j *journal) {
	t.Helper()
	if err := unix.Flock(int(j.file.Fd()), unix.LOCK_UN); err != nil {
		t.Fatal(err)
	}
}

func openTestJournal(t *testing.T, path string) *journal {
	t.Helper()
	j, err := openJournal(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { j.file.Close() })
	return j
}
