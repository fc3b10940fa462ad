package sandbox

import (
	"context"
	"sync"
	"time"
)

// retries are the background tries of what would not go.
type retries struct {
	pending bool // one is waiting for its time
	failed  int  // so far
}

// retry calls again after a pause that grows with every failure, with a context
// that ends with close; at most one is pending in r, which mu guards.
func (ps *Pods) retry(mu *sync.Mutex, r *retries, again func(context.Context)) {
	mu.Lock()
	defer mu.Unlock()
	if r.pending {
		return
	}
	r.pending = true
	r.failed++
	ps.background.later(backoff(r.failed), func() {
		mu.Lock()
		r.pending = false
		mu.Unlock()
		again(ps.background.ctx)
	})
}

// backoff is the pause before the try after n failures: 1 s, doubling, at most
// five minutes.
func backoff(n int) time.Duration {
	const first, most = time.Second, 5 * time.Minute
	if n > 16 {
		return most
	}
	return min(first<<max(n-1, 0), most)
}

// again tries a stop or removal again after a pause.
func (p *Pod) again(v verb, do func(context.Context) error) {
	p.pods.retry(&p.mu, &p.retries, func(ctx context.Context) {
		_ = p.do(ctx, v, do) // reported, and it tries again itself
	})
}

// again tries a removal or clean-up again after a pause, until it has gone well. A
// removal takes the place of a clean-up that waits for its time.
func (c *Container) again(v verb, do func(context.Context) error) {
	c.pod.pods.retry(&c.pod.mu, &c.retries, func(ctx context.Context) {
		if c.record().State == containerRemoving {
			v, do = verbRemove, c.remove
		}
		if err := c.do(ctx, &flight{verb: v}, operationTimeout, do); err != nil { // reported
			c.again(v, do)
		}
	})
}
