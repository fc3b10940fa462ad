package main

import (
	"context"
	"fmt"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// idle is how long a full node is watched that nobody asks anything.
const idle = 20 * time.Second

// pausePath is what the pause image executes.
const pausePath = "/pause"

// full measures nodes with many pods: on each side in turn all are started at once,
// watched, asked, doubled, and removed at once.
func (b *bench) full(ctx context.Context) error {
	return b.alternately(ctx, b.rounds, func(side int, s *side) error {
		n := fullNode{bench: b, number: side, side: s}
		for _, step := range []func(context.Context) error{n.fill, n.rest, n.double, n.ask, n.restart, n.drain} {
			if err := step(ctx); err != nil {
				return err
			}
		}
		return nil
	})
}

// fullNode is one side while it has pods.
type fullNode struct {
	*bench
	*side
	number int
	all    []*pod
	memory float64 // in bytes, of the runtime's own processes
}

// add adds to the row "what, N pods".
func (n *fullNode) add(what, unit string, goal target, value float64) {
	n.table.row(fmt.Sprintf("%d pods: %s", n.pods(), what), unit, goal).add(n.number, value)
}

func (n *fullNode) pods() int { return n.bench.pods }

// start starts as many pods as a full node has, all at once.
func (n *fullNode) start(ctx context.Context) (time.Duration, error) {
	pods, err := n.newPods(n.pods(), n.image)
	if err != nil {
		return 0, err
	}
	begin := time.Now()
	if err := together(len(pods), func(i int) error {
		return n.through(ctx, pods[i], times{}, "up", up...)
	}); err != nil {
		return 0, err
	}
	took := time.Since(begin)
	n.all = append(n.all, pods...)
	return took, together(len(pods), func(i int) error { return pods[i].ready(ctx) })
}

// end removes pods, all at once.
func (n *fullNode) end(ctx context.Context, pods []*pod) (time.Duration, error) {
	begin := time.Now()
	err := together(len(pods), func(i int) error {
		return n.through(ctx, pods[i], times{}, "down", down...)
	})
	return time.Since(begin), err
}

func (n *fullNode) fill(ctx context.Context) error {
	before, err := cpuOfRun()
	if err != nil {
		return err
	}
	took, err := n.start(ctx)
	if err != nil {
		return err
	}
	after, err := cpuOfRun()
	if err != nil {
		return err
	}
	n.add("started at once", "s", target{ratioAtMost, 0.5}, took.Seconds())
	n.add("CPU of everything per pod started", "ms", none, milliseconds(after-before)/float64(n.pods()))
	return nil
}

// rest measures CPU and memory of a node that nobody asks anything.
func (n *fullNode) rest(ctx context.Context) error {
	if err := pause(ctx, settling); err != nil {
		return err
	}
	cpu, err := cpuDuring(func() error { return pause(ctx, idle) }, n.programs...)
	if err != nil {
		return err
	}
	n.add("CPU when idle", "% of one", target{valueAtMost, 0.05}, 100*cpu.Seconds()/idle.Seconds())
	if n.memory, err = memory(n.programs...); err != nil {
		return err
	}
	pauses, err := memory(pausePath)
	if err != nil {
		return err
	}
	perPod := float64(n.pods()) * mebibyte
	n.add("memory per pod", "MiB", target{ratioAtMost, 0.1}, n.memory/perPod)
	n.add("memory of pause processes per pod", "MiB", none, pauses/perPod)
	return nil
}

// double measures what as many pods again take, and removes them.
func (n *fullNode) double(ctx context.Context) error {
	if _, err := n.start(ctx); err != nil {
		return err
	}
	if err := pause(ctx, settling); err != nil {
		return err
	}
	doubled, err := memory(n.programs...)
	if err != nil {
		return err
	}
	n.add("memory per further pod", "MiB", target{valueAtMost, 0.1}, (doubled-n.memory)/float64(n.pods())/mebibyte)
	further := n.all[n.pods():]
	n.all = n.all[:n.pods()]
	_, err = n.end(ctx, further)
	return err
}

// ask measures what the kubelet asks of a full node all the time.
func (n *fullNode) ask(ctx context.Context) error {
	questions := []struct {
		name string
		ask  func(p *pod) (answers int, err error)
	}{
		{"ListPodSandbox", func(*pod) (int, error) {
			resp, err := n.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
			return len(resp.GetItems()), err
		}},
		{"ListContainers", func(*pod) (int, error) {
			resp, err := n.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
			return len(resp.GetContainers()), err
		}},
		{"PodSandboxStatus", func(p *pod) (int, error) {
			_, err := n.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.id})
			return n.pods(), err
		}},
		{"ContainerStatus", func(p *pod) (int, error) {
			_, err := n.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: p.container})
			return n.pods(), err
		}},
		{"ListPodSandboxStats", func(*pod) (int, error) {
			resp, err := n.ListPodSandboxStats(ctx, &runtimeapi.ListPodSandboxStatsRequest{})
			return len(resp.GetStats()), err
		}},
		{"ListContainerStats", func(*pod) (int, error) {
			resp, err := n.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{})
			return len(resp.GetStats()), err
		}},
	}
	for _, q := range questions {
		for i := range n.n {
			begin := time.Now()
			answers, err := q.ask(n.all[i%len(n.all)])
			took := time.Since(begin)
			if err != nil {
				return fmt.Errorf("%s of %s: %w", q.name, n.name, err)
			}
			if answers != n.pods() {
				return fmt.Errorf("%s of %s answers %d of %d", q.name, n.name, answers, n.pods())
			}
			n.add(q.name, "ms", target{ratioAtMost, 1}, milliseconds(took))
		}
	}
	return nil
}

// restart measures how long after a crash the daemon says again that all run.
func (n *fullNode) restart(ctx context.Context) error {
	if err := n.kill(); err != nil {
		return err
	}
	begin := time.Now()
	answered, err := n.side.start(ctx)
	if err != nil {
		return err
	}
	if err := n.await(ctx, func(ctx context.Context) error {
		resp, err := n.ListContainers(ctx, &runtimeapi.ListContainersRequest{
			Filter: &runtimeapi.ContainerFilter{State: &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING}},
		})
		if err == nil && len(resp.GetContainers()) != n.pods() {
			err = fmt.Errorf("%d of %d containers run", len(resp.GetContainers()), n.pods())
		}
		return err
	}); err != nil {
		return err
	}
	n.add("daemon killed, start to the first answer", "ms", none, milliseconds(answered))
	n.add("daemon killed, start to the first complete list", "ms", target{ratioAtMost, 0.15}, milliseconds(time.Since(begin)))
	return nil
}

func (n *fullNode) drain(ctx context.Context) error {
	before, err := cpuOfRun()
	if err != nil {
		return err
	}
	took, err := n.end(ctx, n.all)
	if err != nil {
		return err
	}
	after, err := cpuOfRun()
	if err != nil {
		return err
	}
	n.add("removed at once", "s", none, took.Seconds())
	n.add("CPU of everything per pod removed", "ms", none, milliseconds(after-before)/float64(n.pods()))
	return nil
}
