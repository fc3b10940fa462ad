package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/wrapperspb"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// PullProgress is one message of Pull: how far the pull is, whole each time.
type PullProgress struct {
	Layers []LayerProgress `json:"layers,omitempty"` // base layer first; none until the registry has said which there are
	Image  string          `json:"image,omitempty"`  // the image's id, in the last message and only there
}

// LayerProgress is how far one layer is.
type LayerProgress struct {
	Digest string `json:"digest"` // of the compressed bytes
	Phase  Phase  `json:"phase"`
	Bytes  int64  `json:"bytes"` // compressed bytes that have come
	Total  int64  `json:"total"` // compressed bytes of the layer
}

// Phase is what is happening to a layer.
type Phase string

// The phases in their order. A layer may go back to waiting when its download
// failed and another pull goes on with it.
const (
	Waiting     Phase = "waiting"
	Downloading Phase = "downloading"
	Extracting  Phase = "extracting"
	Done        Phase = "done"
	Present     Phase = "present" // it was there before the pull
)

var pullStream = grpc.StreamDesc{StreamName: "Pull", Handler: handlePull, ServerStreams: true}

// Pull pulls an image as PullImage does, passing every message that comes to
// show, and returns the image's id.
func Pull(ctx context.Context, conn grpc.ClientConnInterface, req *runtimeapi.PullImageRequest, show func(PullProgress)) (id string, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the stream when a message could not be read
	stream, err := conn.NewStream(ctx, &pullStream, pull)
	if err != nil {
		return "", err
	}
	if err := stream.SendMsg(req); err != nil && !errors.Is(err, io.EOF) { // EOF: the server's error comes with the first message
		return "", err
	}
	if err := stream.CloseSend(); err != nil {
		return "", err
	}
	for {
		message := &wrapperspb.StringValue{}
		err := stream.RecvMsg(message)
		if errors.Is(err, io.EOF) {
			return id, nil
		}
		if err != nil {
			return "", err
		}
		var p PullProgress
		if err := json.Unmarshal([]byte(message.GetValue()), &p); err != nil {
			return "", fmt.Errorf("decode progress of the pull: %w", err)
		}
		id = p.Image
		show(p)
	}
}

func handlePull(srv any, stream grpc.ServerStream) error {
	req := &runtimeapi.PullImageRequest{}
	if err := stream.RecvMsg(req); err != nil {
		return err
	}
	return srv.(Server).Pull(stream.Context(), req, func(p PullProgress) error {
		data, err := json.Marshal(p)
		if err != nil {
			return err
		}
		return stream.SendMsg(wrapperspb.String(string(data)))
	})
}
