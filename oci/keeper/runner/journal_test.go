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
	for _, length := range []int{1, 2, 100, chunkSize - 1, chunkSize} {
		text := strings.Repeat("x", length)
		read := func(j *slot) {
			copy(j.expect(st, length), text)
		}
		for _, test := range []struct {
			name string
			do   func(*slot)
			left bool
		}{
			{"nothing", func(*slot) {}, false},
			{"before the read", func(j *slot) { j.expect(st, length) }, false},
			{"after the read", func(j *slot) { read(j) }, true},
			{"with its length", func(j *slot) { read(j); j.have(st.sink, length) }, true},
			{"written", func(j *slot) { read(j); j.have(st.sink, length); j.done() }, false},
			{"a read of nothing", func(j *slot) { j.expect(st, length); j.have(st.sink, 0) }, false},
			{"a read that failed", func(j *slot) { j.expect(st, length); j.have(st.sink, -1) }, false},
			{"one written, the next before its read", func(j *slot) {
				read(j)
				j.have(st.sink, length)
				j.done()
				j.expect(st, length)
			}, false},
		} {
			path := filepath.Join(t.TempDir(), "journal")
			dead := openTestJournal(t, path)
			test.do(dead.slots[1])
			unlock(t, dead)
			left := openTestJournal(t, path).left()
			if (len(left) == 1) != test.left {
				t.Errorf("%d bytes, %s: left %+v, want %v", length, test.name, left, test.left)
			}
			if len(left) == 1 && (string(left[0].bytes) != text || left[0].stream != stderrName || left[0].dir != "/var/log" ||
				left[0].dev != 3 || left[0].ino != 4 || left[0].size != 50 && left[0].size != -1) {
				t.Errorf("%d bytes, %s: left %+v", length, test.name, left[0])
			}
		}
	}
}

// A read may be short of what the stream seemed to hold, since a container can
// take its output back: as many bytes count as were read, also when the reader
// died before it could say how many.
func TestJournalOfAShortRead(t *testing.T) {
	for _, want := range []int{6, 100, chunkSize} {
		for _, said := range []bool{true, false} {
			path := filepath.Join(t.TempDir(), "journal")
			j := openTestJournal(t, path)
			st := &stream{name: stdoutName, sink: &sink{}}
			copy(j.slots[0].expect(st, want), "short")
			if said {
				j.slots[0].have(st.sink, 5)
			}
			if left := j.left(); len(left) != 1 || string(left[0].bytes) != "short" || left[0].stream != stdoutName {
				t.Errorf("of %d bytes, length said %v: left %+v", want, said, left)
			}
		}
	}
}

// The chunk that may be in its log in part comes first: the log is cut there.
func TestJournalOfSeveralChunks(t *testing.T) {
	j := openTestJournal(t, filepath.Join(t.TempDir(), "journal"))
	st := &stream{name: stdoutName, sink: &sink{}}
	copy(j.slots[0].expect(st, 5), "later")
	copy(j.slots[7].expect(st, 5), "first")
	j.slots[7].have(st.sink, 5)
	left := j.left()
	if len(left) != 2 || string(left[0].bytes) != "first" || string(left[1].bytes) != "later" {
		t.Errorf("left %+v", left)
	}
	j.done()
	if left := j.left(); len(left) != 0 {
		t.Errorf("left %+v when all was done", left)
	}
}

// What is in the file may be anything after a crash of the machine, or an older
// Berth's.
func TestJournalOfGarbage(t *testing.T) {
	for name, spoil := range map[string]func(*slotHeader){
		"phase":         func(h *slotHeader) { h.phase = 77 },
		"length":        func(h *slotHeader) { h.want = chunkSize + 1 },
		"no length":     func(h *slotHeader) { h.want = 0 },
		"path's length": func(h *slotHeader) { h.dirLen = 1 << 20 },
	} {
		j := openTestJournal(t, filepath.Join(t.TempDir(), "journal"))
		st := &stream{name: stdoutName, sink: &sink{}}
		copy(j.slots[0].expect(st, 100), "text")
		j.slots[0].have(st.sink, 4)
		spoil(j.slots[0].head)
		if left := j.left(); len(left) != 0 {
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
