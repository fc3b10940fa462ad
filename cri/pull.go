package cri

import (
	"context"
	"slices"
	"sync"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/cri/admin"
	"berth/image"
)

// pullLook is how often a pull is looked at for a client that wants to see it:
// often enough for a bar to move smoothly.
const pullLook = 100 * time.Millisecond

// phases are the admin service's words for those of package image.
var phases = map[image.Phase]admin.Phase{
	image.Waiting:     admin.Waiting,
	image.Downloading: admin.Downloading,
	image.Extracting:  admin.Extracting,
	image.Done:        admin.Done,
	image.Present:     admin.Present,
}

// Pull is PullImage of the admin service: it sends how far each layer is
// whenever that has changed, and at the end the image's id. A client that goes
// ends the pull.
func (s *Server) Pull(ctx context.Context, req *runtimeapi.PullImageRequest, send func(admin.PullProgress) error) error {
	ctx, giveUp := context.WithCancel(ctx)
	defer giveUp()
	showing, end := context.WithCancel(ctx)
	defer end()
	var watch image.Watch
	var looking sync.WaitGroup
	looking.Go(func() {
		if show(showing, &watch, send) != nil {
			giveUp()
		}
	})
	pulled, err := s.pullImage(ctx, req, &watch)
	end()
	looking.Wait()
	if err != nil {
		return err
	}
	return send(progress(watch.Layers(), pulled.GetImageRef()))
}

// show sends what has changed until ctx ends.
func show(ctx context.Context, watch *image.Watch, send func(admin.PullProgress) error) error {
	look := time.NewTicker(pullLook)
	defer look.Stop()
	var shown []image.LayerProgress
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-look.C:
		}
		layers := watch.Layers()
		if slices.Equal(layers, shown) {
			continue
		}
		if err := send(progress(layers, "")); err != nil {
			return err
		}
		shown = layers
	}
}

func progress(layers []image.LayerProgress, id string) admin.PullProgress {
	p := admin.PullProgress{Image: id}
	for _, l := range layers {
		p.Layers = append(p.Layers, admin.LayerProgress{
			Digest: l.Digest.String(), Phase: phases[l.Phase], Bytes: l.Bytes, Total: l.Total,
		})
	}
	return p
}
