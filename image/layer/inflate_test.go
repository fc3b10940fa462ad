package layer

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
	"testing/iotest"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"berth/test/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

func gzipped(t testing.TB, parts ...[]byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	for _, p := range parts {
		w := gzip.NewWriter(&buf)
		if _, err := w.Write(p); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return buf.Bytes()
}

func zstded(t testing.TB, parts ...[]byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	var all []byte
	for _, p := range parts {
		all = w.EncodeAll(p, all)
	}
	return all
}

// content is n bytes that compress to about half.
func content(n int) []byte {
	random := rand.New(rand.NewPCG(1, 2))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(random.IntN(16))
	}
	return b
}

func declare(compressed, tar []byte) Declared {
	return Declared{Digest: digest.FromBytes(compressed), Size: int64(len(compressed)), DiffID: digest.FromBytes(tar)}
}

func TestInflate(t *testing.T) {
	for _, size := range []int{0, 1, 511, chunk - 1, chunk, chunk + 1, 3*chunk + 17} {
		tar := content(size)
		half := size / 2
		skippable := append([]byte{0x5a, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3}, zstded(t, tar)...)
		for name, compressed := range map[string][]byte{
			"plain":                  tar,
			"gzip":                   gzipped(t, tar),
			"gzip, two members":      gzipped(t, tar[:half], tar[half:]),
			"gzip, one member empty": gzipped(t, nil, tar, nil),
			"zstd":                   zstded(t, tar),
			"zstd, two frames":       zstded(t, tar[:half], tar[half:]),
			"zstd, skippable frame":  skippable,
		} {
			for how, reader := range map[string]io.Reader{
				"whole":   bytes.NewReader(compressed),
				"halves":  iotest.HalfReader(bytes.NewReader(compressed)),
				"dataErr": iotest.DataErrReader(bytes.NewReader(compressed)),
			} {
				var out bytes.Buffer
				n, err := Inflate(context.Background(), &out, reader, declare(compressed, tar), Windows{})
				if err != nil || n != int64(size) || !bytes.Equal(out.Bytes(), tar) {
					t.Errorf("%s, %d bytes, %s: %d bytes, %v", name, size, how, n, err)
				}
			}
		}
	}
}

func TestInflateRefuses(t *testing.T) {
	tar := content(100_000)
	good := gzipped(t, tar)
	with := func(b []byte, more ...byte) []byte { return append(bytes.Clone(b), more...) }
	changed := bytes.Clone(good)
	changed[len(changed)/2] ^= 1
	tests := []struct {
		name     string
		sent     []byte
		declared Declared
		mismatch bool
	}{
		{"wrong digest", good, Declared{digest.FromString("x"), int64(len(good)), digest.FromBytes(tar)}, true},
		{"wrong diffID", good, Declared{digest.FromBytes(good), int64(len(good)), digest.FromString("x")}, true},
		{"a flipped bit", changed, declare(good, tar), true},
		{"less than declared", good[:len(good)-9], declare(good, tar), true},
		{"more than declared", with(good, 1, 2, 3), declare(good, tar), true},
		{"nothing", nil, declare(good, tar), true},
		{"honest trailing garbage", with(good, 1, 2, 3), declare(with(good, 1, 2, 3), tar), false},
		{"honest trailing zeros", with(good, 0, 0, 0), declare(with(good, 0, 0, 0), tar), false},
		{"honest truncation", good[:len(good)-9], declare(good[:len(good)-9], tar), false},
		{"zstd trailing garbage", with(zstded(t, tar), 1, 2, 3), declare(with(zstded(t, tar), 1, 2, 3), tar), false},
		{"zstd truncation", zstded(t, tar)[:50], declare(zstded(t, tar)[:50], tar), false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := Inflate(context.Background(), io.Discard, bytes.NewReader(test.sent), test.declared, Windows{})
			if err == nil {
				t.Fatal("accepted")
			}
			if errors.Is(err, ErrMismatch) != test.mismatch {
				t.Errorf("got %v", err)
			}
		})
	}
}

// zeros is an endless reader of them.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// TestBomb: a hundred KiB of zstd that inflate to more than a GiB.
func TestBomb(t *testing.T) {
	const inside = freeInflation + 100<<20
	var bomb bytes.Buffer
	w, err := zstd.NewWriter(&bomb)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(w, zeros{}, inside); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if limit := maxTar(int64(bomb.Len())); limit >= inside {
		t.Fatalf("the bomb of %d bytes is too small for its limit of %d", inside, limit)
	}
	var written counter
	_, err = Inflate(context.Background(), &written, &bomb, Declared{Size: int64(bomb.Len())}, Windows{})
	if !errors.Is(err, ErrTooLarge) {
		t.Errorf("got %v, want ErrTooLarge", err)
	}
	if written > inside {
		t.Errorf("%d bytes were written", written)
	}
}

type counter int64

func (c *counter) Write(p []byte) (int, error) { *c += counter(len(p)); return len(p), nil }

// TestErrorsOfBothEnds: a failing source or destination is told as it is, and
// no worker stays.
func TestErrorsOfBothEnds(t *testing.T) {
	tar := content(5 * chunk)
	sent := gzipped(t, tar)
	boom := errors.New("boom")
	broken := io.MultiReader(bytes.NewReader(sent[:len(sent)/2]), iotest.ErrReader(boom))
	if _, err := Inflate(context.Background(), io.Discard, broken, declare(sent, tar), Windows{}); !errors.Is(err, boom) {
		t.Errorf("source: got %v", err)
	}
	if _, err := Inflate(context.Background(), &fullAfter{2 * chunk, boom}, bytes.NewReader(sent), declare(sent, tar), Windows{}); !errors.Is(err, boom) {
		t.Errorf("destination: got %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Inflate(ctx, io.Discard, bytes.NewReader(sent), declare(sent, tar), Windows{}); !errors.Is(err, context.Canceled) {
		t.Errorf("context: got %v", err)
	}
}

// fullAfter takes left bytes.
type fullAfter struct {
	left int
	err  error
}

func (f *fullAfter) Write(p []byte) (int, error) {
	if f.left -= len(p); f.left < 0 {
		return 0, f.err
	}
	return len(p), nil
}

// FuzzInflate: whatever comes, nothing but the declared tar is accepted.
func FuzzInflate(f *testing.F) {
	tar := content(1000)
	for _, seed := range [][]byte{nil, tar, gzipped(f, tar), zstded(f, tar), gzipped(f, tar, tar), {0x50, 0x2a, 0x4d, 0x18}} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, sent []byte) {
		var out bytes.Buffer
		_, err := Inflate(context.Background(), &out, bytes.NewReader(sent), declare(sent, tar), Windows{})
		if err == nil && !bytes.Equal(out.Bytes(), tar) {
			t.Fatalf("accepted %d bytes that are not the tar", out.Len())
		}
	})
}
