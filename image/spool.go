package image

import (
	"io"
	"os"
)

// A spool reads a compressed layer from its registry. Before it is inflated with memory
// that other layers wait for, fill brings all of it to the disk, so that a slow registry
// does not hold that memory.
type spool struct {
	from  io.Reader // the registry, then file
	store *Store
	dir   string
	file  *os.File // nil before fill
	err   error    // of fill
}

func (s *spool) Read(p []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	return s.from.Read(p)
}

// fill reads all that is left from the registry. It is called once.
func (s *spool) fill() error {
	s.err = s.toDisk()
	return s.err
}

func (s *spool) toDisk() (err error) {
	if s.file, err = os.CreateTemp(s.dir, "blob"); err != nil {
		return err
	}
	if err := os.Remove(s.file.Name()); err != nil { // its space is free when it is closed
		return err
	}
	if _, err := io.Copy(&guarded{store: s.store, file: s.file}, s.from); err != nil {
		return err
	}
	s.from = s.file
	_, err = s.file.Seek(0, io.SeekStart)
	return err
}

func (s *spool) close() {
	if s.file != nil {
		s.file.Close()
	}
}
