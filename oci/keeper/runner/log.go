package runner

import (
	"io"
	"os"
)

// maxLog bounds the keeper's log, in bytes: it lies on the tmpfs of the records
// and its writers live for months.
const maxLog = 1 << 20

// Log is the writer for a logger to f. A regular file, which has to be open for
// appending, is begun anew when it is full.
func Log(f *os.File) io.Writer { return boundedLog{f} }

type boundedLog struct{ *os.File }

func (l boundedLog) Write(b []byte) (int, error) {
	if st, err := l.Stat(); err == nil && st.Mode().IsRegular() && st.Size() > maxLog {
		_ = l.Truncate(0)
	}
	return l.File.Write(b)
}
