package runner

import (
	"bytes"
	"time"
)

// stampFormat is RFC 3339 with all nine digits, so that lines align and sort.
const stampFormat = "2006-01-02T15:04:05.000000000Z07:00"

// appendLines appends chunk to dst in the format of CRI logs:
//
//	<RFC3339Nano> stdout|stderr P|F <bytes>\n
//
// A last part without newline is a P line of its own: a reader joins it with
// what follows, and nothing waits for a newline that may never come. So no state
// is carried from chunk to chunk.
func appendLines(dst []byte, at time.Time, stream string, chunk []byte) []byte {
	var prefix [64]byte
	head := at.UTC().AppendFormat(prefix[:0], stampFormat)
	head = append(head, ' ')
	head = append(head, stream...)
	head = append(head, ' ')
	for len(chunk) > 0 {
		dst = append(dst, head...)
		i := bytes.IndexByte(chunk, '\n')
		if i < 0 {
			dst = append(dst, 'P', ' ')
			dst = append(dst, chunk...)
			return append(dst, '\n')
		}
		dst = append(dst, 'F', ' ')
		dst = append(dst, chunk[:i+1]...)
		chunk = chunk[i+1:]
	}
	return dst
}
