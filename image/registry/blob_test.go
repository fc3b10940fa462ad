package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// data is a blob that is large enough to break in the middle.
var data = func() []byte {
	random := rand.New(rand.NewPCG(3, 4))
	b := make([]byte, 1<<20)
	for i := range b {
		b[i] = byte(random.IntN(256))
	}
	return b
}()

// offset is the first byte that a request asks for.
func offset(r *http.Request) int {
	from, _, _ := strings.Cut(strings.TrimPrefix(r.Header.Get("Range"), "bytes="), "-")
	n, _ := strconv.Atoi(from)
	return n
}

// part answers with n bytes from an offset on and then cuts the connection,
// unless that was all.
func part(w http.ResponseWriter, from, n int, partial bool) {
	if partial {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(data)-1, len(data)))
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(data)-from))
	if partial {
		w.WriteHeader(http.StatusPartialContent)
	}
	n = min(n, len(data)-from)
	_, _ = w.Write(data[from : from+n])
	if from+n < len(data) {
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
}

func readBlob(t *testing.T, h http.HandlerFunc, change func(*Repository)) ([]byte, error) {
	t.Helper()
	b := open(t, serve(t, h), change).Blob(context.Background(), digest.FromBytes(data), int64(len(data)))
	defer b.Close()
	return io.ReadAll(b)
}

func TestBlobResumes(t *testing.T) {
	var asked []int
	answers := map[string]http.HandlerFunc{
		"with ranges": func(w http.ResponseWriter, r *http.Request) {
			asked = append(asked, offset(r))
			part(w, offset(r), 100_000, offset(r) > 0)
		},
		"without ranges": func(w http.ResponseWriter, r *http.Request) {
			asked = append(asked, offset(r))
			part(w, 0, offset(r)+100_000, false)
		},
		"with errors in between": func(w http.ResponseWriter, r *http.Request) {
			asked = append(asked, offset(r))
			if len(asked)%2 == 0 {
				w.WriteHeader(http.StatusServiceUnavailable)
				return
			}
			part(w, offset(r), 200_000, offset(r) > 0)
		},
	}
	for name, h := range answers {
		t.Run(name, func(t *testing.T) {
			asked = nil
			got, err := readBlob(t, h, nil)
			if err != nil || !bytes.Equal(got, data) {
				t.Errorf("got %d bytes, %v", len(got), err)
			}
			if len(asked) < 5 {
				t.Errorf("asked only at %v: nothing was resumed", asked)
			}
		})
	}
}

func TestBlobGivesUp(t *testing.T) {
	var asked int
	tests := []struct {
		name   string
		answer http.HandlerFunc
		want   error
		most   int // requests
	}{
		{"no progress", func(w http.ResponseWriter, r *http.Request) {
			part(w, offset(r), 10, offset(r) > 0)
		}, ErrUnavailable, tries},
		{"ends early without a length", func(w http.ResponseWriter, r *http.Request) {
			w.(http.Flusher).Flush()
		}, ErrUnavailable, tries},
		{"not there", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(404) }, ErrNotFound, 1},
		{"down after the first connection", func(w http.ResponseWriter, r *http.Request) {
			if asked > 1 {
				w.WriteHeader(503)
				return
			}
			part(w, 0, 200_000, false)
		}, ErrUnavailable, tries},
		{"gone at the second try", func(w http.ResponseWriter, r *http.Request) {
			if offset(r) > 0 {
				w.WriteHeader(404)
				return
			}
			part(w, 0, 100_000, false)
		}, ErrNotFound, 2},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			asked = 0
			_, err := readBlob(t, func(w http.ResponseWriter, r *http.Request) { asked++; test.answer(w, r) }, nil)
			if !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
			if asked > test.most {
				t.Errorf("asked %d times", asked)
			}
		})
	}
}

func TestBlobLies(t *testing.T) {
	for name, h := range map[string]http.HandlerFunc{
		"larger": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", strconv.Itoa(len(data)+1))
			_, _ = w.Write(append(bytes.Clone(data), 0))
		},
		"larger without a length": func(w http.ResponseWriter, r *http.Request) {
			_, _ = w.Write(data)
			w.(http.Flusher).Flush()
			_, _ = w.Write([]byte("more"))
		},
		"smaller": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", strconv.Itoa(len(data)-1))
			_, _ = w.Write(data[1:])
		},
		"another range": func(w http.ResponseWriter, r *http.Request) {
			if offset(r) == 0 {
				part(w, 0, 100_000, false)
			}
			part(w, offset(r)-1, len(data), true)
		},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := readBlob(t, h, nil); err == nil || errors.Is(err, ErrUnavailable) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// TestBlobStalls: a drip of bytes is no progress.
func TestBlobStalls(t *testing.T) {
	end := make(chan struct{})
	defer close(end)
	_, err := readBlob(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", strconv.Itoa(len(data)))
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for i := range data {
			_, _ = w.Write(data[i : i+1])
			w.(http.Flusher).Flush()
			select {
			case <-tick.C:
			case <-end:
				return
			case <-r.Context().Done():
				return
			}
		}
	}, func(r *Repository) { r.Timeout = 100 * time.Millisecond })
	if !errors.Is(err, ErrUnavailable) || !errors.Is(err, errStalled) {
		t.Errorf("got %v, want ErrUnavailable for no progress", err)
	}
}

func TestBlobCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", strconv.Itoa(len(data)))
		_, _ = w.Write(data[:1000])
		w.(http.Flusher).Flush()
		cancel()
		<-r.Context().Done()
	})
	b := open(t, s, nil).Blob(ctx, digest.FromBytes(data), int64(len(data)))
	defer b.Close()
	if _, err := io.ReadAll(b); !errors.Is(err, context.Canceled) || errors.Is(err, ErrUnavailable) {
		t.Errorf("got %v, want Canceled alone", err)
	}
}
