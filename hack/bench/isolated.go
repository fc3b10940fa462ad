package main

import (
	"context"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// networks are the two kinds of pods.
var networks = []struct {
	name    string
	mode    runtimeapi.NamespaceMode
	targets map[string]target
}{
	{"CNI", runtimeapi.NamespaceMode_POD, map[string]target{
		"up": {ratioAtMost, 0.45}, "cycle": {ratioAtMost, 0.45}, execSync.name: {ratioAtMost, 0.95},
	}},
	{"host network", runtimeapi.NamespaceMode_NODE, map[string]target{
		"up": {ratioAtMost, 0.4}, "cycle": {ratioAtMost, 0.45}, execSync.name: {ratioAtMost, 0.95},
	}},
}

// isolated measures each call of a pod's life on a machine that does nothing else.
func (b *bench) isolated(ctx context.Context) error {
	for _, network := range networks {
		if err := b.alternately(ctx, b.n, func(side int, s *side) error {
			p, err := s.newPod(b.image, rest, network.mode)
			if err != nil {
				return err
			}
			t, err := s.cycle(ctx, p, execSync)
			if err != nil {
				return err
			}
			b.addCycle(side, t, "one by one, "+network.name, network.targets)
			return nil
		}); err != nil {
			return err
		}
	}
	return nil
}

// addCycle adds the times of one pod's calls to their rows.
func (b *bench) addCycle(side int, t times, how string, targets map[string]target) {
	for _, call := range calls() {
		if _, done := t[call]; !done {
			continue
		}
		b.table.row(call+", "+how, "ms", targets[call]).add(side, milliseconds(t[call]))
	}
}
