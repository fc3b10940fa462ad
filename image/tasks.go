package image

import "sync"

// tasks are goroutines in the background. Unlike those of a sync.WaitGroup, new
// ones may begin while somebody waits. The zero value is ready.
type tasks struct {
	mu   sync.Mutex
	n    int           // that run
	idle chan struct{} // closed when none of them runs any more
}

// Go runs f in the background.
func (t *tasks) Go(f func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.n++; t.n == 1 {
		t.idle = make(chan struct{})
	}
	go func() {
		defer t.end()
		f()
	}()
}

func (t *tasks) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.n--; t.n == 0 {
		close(t.idle)
	}
}

// Wait returns when none runs.
func (t *tasks) Wait() {
	t.mu.Lock()
	n, idle := t.n, t.idle
	t.mu.Unlock()
	if n > 0 {
		<-idle
	}
}
