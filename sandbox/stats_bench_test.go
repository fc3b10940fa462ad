package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/oci"
	"berth/oci/cgroup"
)

// What the kubelet asks for every ten seconds, of 50 real containers in 25 pods:
//
//	go test -run '^$' -bench ListStats -benchmem ./sandbox
func BenchmarkListStats(b *testing.B) {
	v := benchmarked(b)
	pods := v.fill(b, 25, 2)
	b.Run("containers", func(b *testing.B) {
		measure(b, func() (int, error) {
			all, err := ContainerStats(b.Context(), v.Pods.Containers())
			return len(all), err
		}, 2*len(pods))
	})
	b.Run("pods", func(b *testing.B) {
		measure(b, func() (int, error) {
			all, err := PodStats(b.Context(), v.Pods.List())
			return len(all), err
		}, len(pods))
	})
}

// measure calls list, which is to list want, and reports beside its time, which is
// that of a machine with others on it, what it costs.
func measure(b *testing.B, list func() (int, error), want int) {
	b.ReportAllocs()
	readsBefore, cpuBefore := reads(b), cpu(b)
	for b.Loop() {
		if got, err := list(); err != nil || got != want {
			b.Fatal(got, err)
		}
	}
	b.ReportMetric(float64(reads(b)-readsBefore)/float64(b.N), "reads/op")
	b.ReportMetric(float64((cpu(b)-cpuBefore).Nanoseconds())/float64(b.N), "cpu-ns/op")
}

// benchmarked is a daemon without CRI, which ends with the benchmark.
func benchmarked(b *testing.B) *victim {
	b.Helper()
	v := &victim{setup: newSetup(b, "crun")}
	v.rested = sync.NewCond(&v.mu)
	var err error
	if v.RunDir, err = os.MkdirTemp("/dev/shm", "berth-bench-"); err != nil {
		b.Fatal(err)
	}
	if err := v.open(b.Context()); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		ctx := context.Background()
		for _, p := range v.Pods.List() {
			if err := p.Remove(ctx); err != nil {
				b.Error(err)
			}
		}
		h, err := v.keeper.Hello(ctx)
		err = errors.Join(err, v.close(), syscall.Kill(h.Pid, syscall.SIGKILL),
			cgroup.Remove(oci.CgroupRoot), os.RemoveAll(v.RunDir))
		if err != nil {
			b.Error(err)
		}
	})
	return v
}

// fill makes pods with so many running containers each.
func (v *victim) fill(b *testing.B, pods, each int) (all []*Pod) {
	b.Helper()
	for i := range pods {
		p, err := v.Pods.Run(b.Context(), RunRequest{Config: podConfig(fmt.Sprint("p", i)), Builtin: true})
		if err != nil {
			b.Fatal(err)
		}
		for j := range each {
			c, err := p.CreateContainer(b.Context(), &runtimeapi.ContainerConfig{
				Metadata: &runtimeapi.ContainerMetadata{Name: fmt.Sprint("c", j)},
				Image:    &runtimeapi.ImageSpec{Image: v.Image},
				Command:  []string{"sleep", "100000"},
			})
			if err == nil {
				err = c.Start(b.Context())
			}
			if err != nil {
				b.Fatal(err)
			}
		}
		all = append(all, p)
	}
	return all
}

// reads counts this process's system calls that read.
func reads(b *testing.B) (n int) {
	b.Helper()
	text, err := os.ReadFile("/proc/self/io")
	if err != nil {
		b.Fatal(err)
	}
	_, after, _ := bytes.Cut(text, []byte("syscr: "))
	if _, err := fmt.Sscan(string(after), &n); err != nil {
		b.Fatal(err)
	}
	return n
}

// cpu is this process's time on processors, with the kernel's for it.
func cpu(b *testing.B) time.Duration {
	b.Helper()
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		b.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}
