package sandbox

import (
	"fmt"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	// maxListed bounds the lists of all pods and of all containers together, in
	// bytes. A client of CRI takes messages of 16 MiB: with a longer list the
	// kubelet would see nothing of the node any more. Together, since the
	// statistics of all pods have the labels and annotations of their containers
	// too.
	maxListed = 15 << 20
	// listedShare is what a list has of a pod or container beside the words of its
	// config, at most: ids, image references, numbers of the statistics.
	listedShare = 2 << 10
)

// measure is how many bytes the pod may add to a list.
func (p *Pod) measure() int {
	return listedShare + proto.Size(&runtimeapi.PodSandbox{
		Metadata:    p.config.GetMetadata(),
		Labels:      p.config.GetLabels(),
		Annotations: p.config.GetAnnotations(),
	})
}

// measure is how many bytes the container may add to a list.
func (c *Container) measure() int {
	return listedShare + proto.Size(&runtimeapi.Container{
		Metadata:    c.config.GetMetadata(),
		Image:       c.config.GetImage(),
		Labels:      c.config.GetLabels(),
		Annotations: c.config.GetAnnotations(),
	})
}

// roomLocked tells whether a pod or container that adds so many bytes to the lists
// may be made. Those that are there, whatever their number, stay.
func (ps *Pods) roomLocked(what string, adds int) error {
	used := 0
	for _, p := range ps.pods {
		used += p.listed()
	}
	for _, c := range ps.containers {
		used += c.listed()
	}
	if used+adds > maxListed {
		return fmt.Errorf("%w: the lists of all pods and containers have %d KiB and this %s adds %d KiB, more than the %d KiB that a client of CRI can receive: remove pods, or shorten labels and annotations",
			ErrListFull, used>>10, what, adds>>10, maxListed>>10)
	}
	return nil
}
