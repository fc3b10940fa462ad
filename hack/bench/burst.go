package main

import (
	"context"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// crowd is how many calls there are at once in a burst.
const crowd = 10

// burst measures calls that are made without a pause, ten at any moment: pods that
// come and go, and then commands in ten pods.
func (b *bench) burst(ctx context.Context) error {
	if err := b.alternately(ctx, b.rounds, func(side int, s *side) error { return b.burstOfPods(ctx, side, s) }); err != nil {
		return err
	}
	return b.alternately(ctx, b.rounds, func(side int, s *side) error { return b.burstOfCommands(ctx, side, s) })
}

func (b *bench) burstOfPods(ctx context.Context, side int, s *side) error {
	pods, err := s.newPods(crowd*b.each(), b.image)
	if err != nil {
		return err
	}
	all := make([]times, len(pods))
	begin := time.Now()
	if err := together(crowd, func(worker int) error {
		for i := worker; i < len(pods); i += crowd {
			t, err := s.cycle(ctx, pods[i])
			if err != nil {
				return err
			}
			all[i] = t
		}
		return nil
	}); err != nil {
		return err
	}
	b.table.row("cycles, 10 at once", "per second", target{ratioAtLeast, 2}).
		add(side, float64(len(pods))/time.Since(begin).Seconds())
	for _, t := range all {
		b.addCycle(side, t, "10 at once", nil)
	}
	return nil
}

func (b *bench) burstOfCommands(ctx context.Context, side int, s *side) error {
	pods, err := s.newPods(crowd, b.image)
	if err != nil {
		return err
	}
	all := make([]times, len(pods)*b.each())
	if err := together(crowd, func(worker int) error {
		p := pods[worker]
		if err := s.through(ctx, p, times{}, "up", up...); err != nil {
			return err
		}
		return p.ready(ctx)
	}); err != nil {
		return err
	}
	if err := together(crowd, func(worker int) error {
		for i := worker; i < len(all); i += crowd {
			all[i] = times{}
			if err := s.through(ctx, pods[worker], all[i], "", execSync); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		return err
	}
	for _, t := range all {
		b.addCycle(side, t, "10 at once", nil)
	}
	return together(crowd, func(worker int) error {
		return s.through(ctx, pods[worker], times{}, "down", down...)
	})
}

// each is how often one of a crowd does its part in a round.
func (b *bench) each() int { return max(1, b.n/crowd) }

// newPods are pods on the pod network that rest.
func (s *side) newPods(n int, image string) ([]*pod, error) {
	var all []*pod
	for range n {
		p, err := s.newPod(image, rest, runtimeapi.NamespaceMode_POD)
		if err != nil {
			return nil, err
		}
		all = append(all, p)
	}
	return all, nil
}
