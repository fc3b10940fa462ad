package keeper

import "os"

// CloseApart closes a file of a container's without waiting for it. A container
// can lock its FIFOs for as long as it likes (by a splice that does not end), and
// the last close of one waits for that.
func CloseApart(f *os.File) { go f.Close() }
