package registry

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// TestResumesAfter: a connection that ends in any of these ways, before the
// answer or within it, is taken up where it broke.
func TestResumesAfter(t *testing.T) {
	for name, broken := range map[string]error{
		"ECONNRESET": &net.OpError{Op: "read", Net: "tcp", Err: os.NewSyscallError("read", syscall.ECONNRESET)},
		"EPIPE":      &net.OpError{Op: "write", Net: "tcp", Err: os.NewSyscallError("write", syscall.EPIPE)},
		"ETIMEDOUT":  &net.OpError{Op: "read", Net: "tcp", Err: os.NewSyscallError("read", syscall.ETIMEDOUT)},
		"EOF":        io.ErrUnexpectedEOF,
		"reset":      http2.StreamError{StreamID: 1, Code: http2.ErrCodeInternal},
	} {
		t.Run(name, func(t *testing.T) {
			r := open(t, serve(t, func(w http.ResponseWriter, r *http.Request) {
				part(w, offset(r), len(data), offset(r) > 0)
			}), nil)
			wire, n := r.wire, 0
			r.wire = roundTrip(func(req *http.Request) (*http.Response, error) {
				if n++; n == 2 {
					return nil, broken
				}
				resp, err := wire.RoundTrip(req)
				if err == nil && n == 1 {
					resp.Body = &breaks{resp.Body, io.MultiReader(io.LimitReader(resp.Body, 100_000), failing{broken})}
				}
				return resp, err
			})
			b := r.Blob(context.Background(), digest.FromBytes(data), int64(len(data)))
			defer b.Close()
			if got, err := io.ReadAll(b); err != nil || !bytes.Equal(got, data) {
				t.Errorf("got %d bytes, %v", len(got), err)
			}
			if n != 3 {
				t.Errorf("%d requests", n)
			}
		})
	}
}

type breaks struct {
	io.Closer
	io.Reader
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// TestResumesOverHTTP2: a stream that the server resets, and a connection that
// it gives up, as net/http reports them.
func TestResumesOverHTTP2(t *testing.T) {
	t.Run("reset", func(t *testing.T) {
		s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.ProtoMajor != 2 {
				t.Errorf("spoken to in %s", r.Proto)
			}
			part(w, offset(r), 300_000, offset(r) > 0)
		}))
		s.EnableHTTP2 = true
		s.StartTLS()
		t.Cleanup(s.Close)
		r := open(t, s, nil)
		r.transport.TLSClientConfig = s.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
		b := r.Blob(context.Background(), digest.FromBytes(data), int64(len(data)))
		defer b.Close()
		if got, err := io.ReadAll(b); err != nil || !bytes.Equal(got, data) {
			t.Errorf("got %d bytes, %v", len(got), err)
		}
	})
	t.Run("GOAWAY", func(t *testing.T) {
		s := httptest.NewUnstartedServer(nil) // for its certificate
		s.StartTLS()
		s.Close()
		l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: s.TLS.Certificates, NextProtos: []string{"h2"}})
		if err != nil {
			t.Fatal(err)
		}
		var served atomic.Int32
		done := make(chan struct{})
		go func() {
			defer close(done)
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				leaveAfter(conn, 300_000, &served)
			}
		}()
		defer func() { l.Close(); <-done }()
		r := &Repository{Host: l.Addr().String(), Name: "a/b", Timeout: 10 * time.Second}
		if err := r.Open(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(r.Close)
		r.transport.TLSClientConfig = &tls.Config{InsecureSkipVerify: true}
		b := r.Blob(context.Background(), digest.FromBytes(data), int64(len(data)))
		defer b.Close()
		if got, err := io.ReadAll(b); err != nil || !bytes.Equal(got, data) {
			t.Errorf("got %d bytes, %v", len(got), err)
		}
		if n := served.Load(); n < 4 {
			t.Errorf("%d connections: nothing was resumed", n)
		}
	})
}

// leaveAfter serves n bytes of data on one HTTP/2 connection, then says GOAWAY
// and closes it.
func leaveAfter(conn net.Conn, n int, served *atomic.Int32) {
	defer conn.Close()
	if _, err := io.ReadFull(conn, make([]byte, len(http2.ClientPreface))); err != nil {
		return
	}
	f := http2.NewFramer(conn, conn)
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	if f.WriteSettings() != nil {
		return
	}
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			return
		}
		asked, ok := frame.(*http2.MetaHeadersFrame)
		if !ok {
			continue
		}
		served.Add(1)
		from := 0
		for _, field := range asked.Fields {
			if field.Name == "range" {
				from = offset(&http.Request{Header: http.Header{"Range": {field.Value}}})
			}
		}
		var header bytes.Buffer
		encoder := hpack.NewEncoder(&header)
		status := "200"
		if from > 0 {
			status = "206"
		}
		_ = encoder.WriteField(hpack.HeaderField{Name: ":status", Value: status})
		_ = encoder.WriteField(hpack.HeaderField{Name: "content-length", Value: strconv.Itoa(len(data) - from)})
		if from > 0 {
			_ = encoder.WriteField(hpack.HeaderField{Name: "content-range", Value: fmt.Sprintf("bytes %d-%d/%d", from, len(data)-1, len(data))})
		}
		_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: asked.StreamID, BlockFragment: header.Bytes(), EndHeaders: true})
		to := min(from+n, len(data))
		for ; from < to; from = min(from+16_000, to) {
			_ = f.WriteData(asked.StreamID, to == len(data) && from+16_000 >= to, data[from:min(from+16_000, to)])
		}
		_ = f.WriteGoAway(0, http2.ErrCodeEnhanceYourCalm, nil)
		return
	}
}

// TestRangeRefused: storage that takes no Range header is asked for the whole.
func TestRangeRefused(t *testing.T) {
	for _, code := range []int{400, 403, 416, 501} {
		t.Run(strconv.Itoa(code), func(t *testing.T) {
			whole := 0
			got, err := readBlob(t, func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Range") != "" {
					w.WriteHeader(code)
					return
				}
				whole++
				part(w, 0, whole*400_000, false)
			}, nil)
			if err != nil || !bytes.Equal(got, data) {
				t.Errorf("got %d bytes, %v", len(got), err)
			}
		})
	}
}

// TestForbiddenAfterAll: 403 is what it says when it is not about the range.
func TestForbiddenAfterAll(t *testing.T) {
	asked := 0
	_, err := readBlob(t, func(w http.ResponseWriter, r *http.Request) {
		if asked++; asked > 1 {
			w.WriteHeader(403)
			return
		}
		part(w, 0, 100_000, false)
	}, nil)
	if !errors.Is(err, ErrUnauthorized) || asked != 3 {
		t.Errorf("got %v after %d requests", err, asked)
	}
}

// inPeace runs f in a bubble of fake time with a repository on a wire that
// handler answers without a network.
func inPeace(t *testing.T, handler http.HandlerFunc, f func(t *testing.T, r *Repository)) {
	synctest.Test(t, func(t *testing.T) {
		r := &Repository{Host: "registry.example", Name: "a/b"}
		if err := r.Open(); err != nil {
			t.Fatal(err)
		}
		r.wire = roundTrip(func(req *http.Request) (*http.Response, error) {
			w := &answer{ResponseRecorder: httptest.NewRecorder()}
			handler(w, req)
			resp := w.Result()
			resp.Request = req
			if w.body != nil {
				resp.Body = io.NopCloser(w.body)
				resp.ContentLength = -1
			}
			return resp, req.Context().Err()
		})
		f(t, r)
	})
}

// answer is a recorder whose body may be a reader.
type answer struct {
	*httptest.ResponseRecorder
	body io.Reader
}

// drip gives n bytes every so often until its request ends, or breaks after
// some bytes.
type drip struct {
	ctx   context.Context
	n     int
	every time.Duration
	left  int // until it breaks
	come  int // of the last n, not yet read
}

func (d *drip) Read(p []byte) (int, error) {
	if d.come > 0 {
		n := min(d.come, d.left, len(p))
		d.come -= n
		d.left -= n
		return n, nil
	}
	if d.left <= 0 {
		return 0, io.ErrUnexpectedEOF
	}
	timer := time.NewTimer(d.every)
	defer timer.Stop()
	select {
	case <-timer.C:
		d.come = min(d.n, d.left)
		return d.Read(p)
	case <-d.ctx.Done():
		return 0, d.ctx.Err()
	}
}

// TestDrips: a blob that comes more slowly than the least rate is given up
// after a minute, whether its connection holds or is broken again and again;
// one that comes a little faster is not.
func TestDrips(t *testing.T) {
	const size = 4 << 20
	for _, test := range []struct {
		name  string
		n     int // bytes
		every time.Duration
		life  int // bytes of one connection
		ok    bool
	}{
		{"4 KiB every 50 s", 4 << 10, 50 * time.Second, size, false},
		{"9 KiB a second", 9 << 10, time.Second, size, false},
		{"11 KiB a second", 11 << 10, time.Second, size, true},
		{"64 KiB at once, then silence, then broken", 64 << 10, 0, 64 << 10, false},
		{"64 KiB in half a minute, then broken", 64 << 10, 30 * time.Second, 64 << 10, false},
		{"1 MiB in half a minute, then broken", 1 << 20, 30 * time.Second, 1 << 20, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			inPeace(t, func(w http.ResponseWriter, r *http.Request) {
				if from := offset(r); from > 0 {
					w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, size-1, size))
					w.WriteHeader(http.StatusPartialContent)
				}
				d := &drip{ctx: r.Context(), n: test.n, every: test.every, left: min(test.life, size-offset(r))}
				w.(*answer).body = d
				if test.every == 0 {
					w.(*answer).body = io.MultiReader(io.LimitReader(endless{}, int64(test.life)), &drip{ctx: r.Context(), n: 1, every: 55 * time.Second, left: 1})
				}
			}, func(t *testing.T, r *Repository) {
				began := time.Now()
				b := r.Blob(context.Background(), digest.FromString("x"), size)
				defer b.Close()
				n, err := io.Copy(io.Discard, b)
				if test.ok && (err != nil || n != size) {
					t.Errorf("given up after %d bytes: %v", n, err)
				}
				if !test.ok && (!errors.Is(err, ErrUnavailable) || !errors.Is(err, errStalled)) {
					t.Errorf("got %v, want ErrUnavailable for being too slow", err)
				}
				if took := time.Since(began); !test.ok && took > 3*time.Minute {
					t.Errorf("given up after %s", took)
				}
			})
		})
	}
}

// TestSlowReader: time that the reader spends elsewhere is not the registry's.
func TestSlowReader(t *testing.T) {
	inPeace(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = w.Write(data)
	}, func(t *testing.T, r *Repository) {
		b := r.Blob(context.Background(), digest.FromBytes(data), int64(len(data)))
		defer b.Close()
		for range 16 {
			if _, err := io.CopyN(io.Discard, b, int64(len(data)/16)); err != nil {
				t.Fatal(err)
			}
			<-time.After(time.Hour)
		}
	})
}

// TestRetryAfter: a registry that asks for time gets it, as long as the pull's
// patience lasts.
func TestRetryAfter(t *testing.T) {
	for _, test := range []struct {
		name  string
		times int // that it asks to wait
		after func() string
		takes time.Duration
		err   error
	}{
		{"a few seconds", 1, func() string { return "7" }, 7 * time.Second, nil},
		{"more often than a failure is tried", 8, func() string { return "5" }, 40 * time.Second, nil},
		{"until a date", 1, func() string { return time.Now().Add(20 * time.Second).UTC().Format(http.TimeFormat) }, 20 * time.Second, nil},
		{"longer than the patience", 1, func() string { return "61" }, 0, ErrUnavailable},
		{"too often", 100, func() string { return "25" }, 50 * time.Second, ErrUnavailable},
		{"no time at all", tries, func() string { return "0" }, 700 * time.Millisecond, ErrUnavailable},
		{"nonsense", tries, func() string { return "soon" }, 700 * time.Millisecond, ErrUnavailable},
		{"for ever", 1, func() string { return strings.Repeat("9", 30) }, 700 * time.Millisecond, nil},
	} {
		for _, code := range []int{http.StatusTooManyRequests, http.StatusServiceUnavailable} {
			for _, who := range []string{"manifests", "blobs", "token"} {
				t.Run(fmt.Sprint(test.name, " ", code, " ", who), func(t *testing.T) {
					asked := 0
					inPeace(t, func(w http.ResponseWriter, r *http.Request) {
						switch {
						case strings.Contains(r.URL.Path, who):
							if asked++; asked <= test.times {
								w.Header().Set("Retry-After", test.after())
								w.WriteHeader(code)
								return
							}
							if who == "token" {
								fmt.Fprint(w, `{"token":"T"}`)
								return
							}
						case who == "token" && r.Header.Get("Authorization") == "":
							wants(w, r, []string{`Bearer realm="https://registry.example/token"`})
							return
						}
						fmt.Fprint(w, body)
					}, func(t *testing.T, r *Repository) {
						began := time.Now()
						var err error
						if who == "blobs" {
							b := r.Blob(context.Background(), digest.FromString(body), int64(len(body)))
							defer b.Close()
							_, err = io.ReadAll(b)
						} else {
							_, err = get(t, r)
						}
						if !errors.Is(err, test.err) {
							t.Errorf("got %v, want %v", err, test.err)
						}
						if took := time.Since(began); took.Round(time.Second) != test.takes.Round(time.Second) && test.name != "for ever" {
							t.Errorf("took %s, want %s", took, test.takes)
						}
					})
				})
			}
		}
	}
}
