package runner

import (
	"errors"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// Guards against namespaces that live as long as the runner: its first thread
// does not end with the goroutine that was locked to it.
func TestNamespacesNeverOfTheFirstThread(t *testing.T) {
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 200 {
				err := inThread(func() error {
					if unix.Gettid() == unix.Getpid() {
						return errors.New("on the first thread")
					}
					return nil
				})
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
}
