package image

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"berth/test/leak"
)

// victim is another process: it pulls, uses and removes images until it is
// killed.
func victim(dir, registry string) {
	ctx := context.Background()
	s := &Store{Dir: dir}
	check(s.Open(ctx))
	fmt.Println("open")
	for i := 0; ; i++ {
		ref := fmt.Sprint(registry, "/", []string{"a", "b"}[i%2], ":v1")
		img := must(s.Pull(ctx, Pull{Ref: ref}))
		id := fmt.Sprint("c", i%3)
		if root, err := s.Root(ctx, id, img, nil); err == nil {
			root.Close()
		}
		if other, err := s.Image(fmt.Sprint(registry, "/", []string{"b", "a"}[i%2], ":v1")); err == nil {
			if view, err := s.View(ctx, id, other, nil); err == nil {
				view.Close()
			}
		}
		if i%3 == 0 {
			check(s.Remove(ctx, ref))
		}
		check(s.RemoveRoot(ctx, fmt.Sprint("c", (i+1)%3)))
	}
}

// TestKilled kills a process at any moment of its work with the store, again and
// again. Each time the store opens, is in order, and works.
func TestKilled(t *testing.T) {
	leak.NeedRoot(t)
	f := newFake(t)
	shared := files("shared", noise(200_000, "s"), "many/a", "", "many/b", "", "many/c", "")
	f.image("a", "v1", spec{layers: [][]byte{shared, files("a", noise(50_000, "a"))}})
	f.image("b", "v1", spec{layers: [][]byte{shared, files("b", noise(70_000, "b"))}, compress: zstded})
	dir := filepath.Join(t.TempDir(), "berth")
	random := rand.New(rand.NewPCG(1, uint64(time.Now().UnixNano())))
	for range 40 {
		killVictim(t, dir, f.host(), time.Duration(random.IntN(40_000))*time.Microsecond)
		s := openStore(t, dir)
		s.check(t)
		for _, img := range s.Images() {
			if len(img.Layers) != 2 {
				t.Errorf("image %+v", img)
			}
		}
		closeStore(t, s)
		if t.Failed() {
			return
		}
	}
	s := openStore(t, dir)
	for _, id := range s.Roots() {
		removeRoot(t, s, id)
	}
	for _, ref := range []string{"/a:v1", "/b:v1"} {
		img := pull(t, s, f.host()+ref)
		root, err := s.Root(context.Background(), "c", img, nil)
		if err != nil {
			t.Fatal(err)
		}
		root.Close()
		removeRoot(t, s, "c")
		remove(t, s, f.host()+ref)
	}
	s.empty(t)
}

// killVictim starts a victim and kills it some time after it has the store open.
func killVictim(t *testing.T, dir, registry string, after time.Duration) {
	t.Helper()
	cmd := exec.Command(must(os.Executable()))
	cmd.Env = append(os.Environ(), "IMAGE_TEST_VICTIM="+dir, "IMAGE_TEST_REGISTRY="+registry)
	cmd.Stderr = os.Stderr
	out := must(cmd.StdoutPipe())
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Errorf("the victim said %q: %v", line, err)
	}
	<-time.After(after)
	_ = cmd.Process.Kill()
	if err := cmd.Wait(); err == nil || cmd.ProcessState.Exited() {
		t.Errorf("the victim ended by itself: %v", cmd.ProcessState)
	}
}
