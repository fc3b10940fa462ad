package cri

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth/image"
	"berth/sandbox"
)

// PullImage pulls an image and returns its id, which is what image_ref and
// image_id name everywhere else. The kubelet sets no deadline: a pull without
// progress is given up by package image.
func (s *Server) PullImage(ctx context.Context, req *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	return s.pullImage(ctx, req, nil)
}

// pullImage is PullImage that watch, unless it is nil, can look at.
func (s *Server) pullImage(ctx context.Context, req *runtimeapi.PullImageRequest, watch *image.Watch) (*runtimeapi.PullImageResponse, error) {
	ref := req.GetImage().GetImage()
	if err := required("image.image", ref); err != nil {
		return nil, err
	}
	if err := checkAuth(req.GetAuth()); err != nil {
		return nil, err
	}
	img, err := s.Images.Pull(ctx, image.Pull{Ref: ref, Auth: toAuth(req.GetAuth()), Watch: watch})
	if err != nil {
		return nil, namedImage("image.image", err)
	}
	return &runtimeapi.PullImageResponse{ImageRef: img.ID.String()}, nil
}

// ImageStatus describes an image found by tag, digest or id. An image that is
// not in the store is a response without an image.
func (s *Server) ImageStatus(_ context.Context, req *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	ref := req.GetImage().GetImage()
	if err := required("image.image", ref); err != nil {
		return nil, err
	}
	img, err := s.Images.Image(ref)
	if errors.Is(err, image.ErrNotFound) {
		return &runtimeapi.ImageStatusResponse{}, nil
	}
	if err != nil {
		return nil, namedImage("image.image", err)
	}
	resp := &runtimeapi.ImageStatusResponse{Image: toImage(img)}
	if req.GetVerbose() {
		if resp.Info, err = imageInfo(img); err != nil {
			return nil, err
		}
	}
	return resp, nil
}

// ListImages lists all images, or the one that the filter names.
func (s *Server) ListImages(_ context.Context, req *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	resp := &runtimeapi.ListImagesResponse{}
	if ref := req.GetFilter().GetImage().GetImage(); ref != "" {
		img, err := s.Images.Image(ref)
		switch {
		case err == nil:
			resp.Images = []*runtimeapi.Image{toImage(img)}
		case !errors.Is(err, image.ErrNotFound):
			return nil, namedImage("filter.image.image", err)
		}
		return resp, nil
	}
	for _, img := range s.Images.Images() {
		resp.Images = append(resp.Images, toImage(img))
	}
	return resp, nil
}

// RemoveImage removes an image, by whichever of its names, with all its tags.
// Nil for an image that is not in the store.
func (s *Server) RemoveImage(ctx context.Context, req *runtimeapi.RemoveImageRequest) (*runtimeapi.RemoveImageResponse, error) {
	ref := req.GetImage().GetImage()
	if err := required("image.image", ref); err != nil {
		return nil, err
	}
	if err := s.Images.Remove(ctx, ref); err != nil && !errors.Is(err, image.ErrNotFound) {
		return nil, namedImage("image.image", err)
	}
	return &runtimeapi.RemoveImageResponse{}, nil
}

// ImageFsInfo describes the one filesystem that holds the layers of images and
// the writable layers of containers.
func (s *Server) ImageFsInfo(ctx context.Context, _ *runtimeapi.ImageFsInfoRequest) (*runtimeapi.ImageFsInfoResponse, error) {
	usage, err := s.Images.Usage(ctx)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ImageFsInfoResponse{
		ImageFilesystems:     []*runtimeapi.FilesystemUsage{toFilesystem(usage)},
		ContainerFilesystems: []*runtimeapi.FilesystemUsage{toFilesystem(s.Images.RootsUsage())},
	}, nil
}

func toFilesystem(u image.Usage) *runtimeapi.FilesystemUsage {
	return &runtimeapi.FilesystemUsage{
		Timestamp:  u.At.UnixNano(),
		FsId:       &runtimeapi.FilesystemIdentifier{Mountpoint: u.Mountpoint},
		UsedBytes:  &runtimeapi.UInt64Value{Value: u.Bytes},
		InodesUsed: &runtimeapi.UInt64Value{Value: u.Inodes},
	}
}

// checkAuth refuses what cannot be said to a registry. No error ever holds any
// part of a credential.
func checkAuth(a *runtimeapi.AuthConfig) error {
	plain, err := base64.StdEncoding.DecodeString(a.GetAuth())
	switch {
	case err != nil:
		return &sandbox.InvalidError{Field: "auth.auth", Reason: "is not base64"}
	case len(plain) > 0 && !bytes.ContainsRune(plain, ':'):
		return &sandbox.InvalidError{Field: "auth.auth", Reason: "is not username:password in base64"}
	case strings.ContainsFunc(a.GetRegistryToken(), unicode.IsControl):
		return &sandbox.InvalidError{Field: "auth.registry_token", Reason: "cannot be in an HTTP header"}
	}
	return nil
}

func toAuth(a *runtimeapi.AuthConfig) image.Auth {
	return image.Auth{
		Username:      a.GetUsername(),
		Password:      a.GetPassword(),
		Auth:          a.GetAuth(),
		ServerAddress: a.GetServerAddress(),
		IdentityToken: a.GetIdentityToken(),
		RegistryToken: a.GetRegistryToken(),
	}
}

func toImage(img *image.Image) *runtimeapi.Image {
	uid, username := imageUser(img.Config.Config.User)
	return &runtimeapi.Image{
		Id:          img.ID.String(),
		RepoTags:    img.Tags,
		RepoDigests: img.Digests,
		Size:        uint64(img.Size),
		Uid:         uid,
		Username:    username,
		Spec:        &runtimeapi.ImageSpec{Image: img.ID.String()},
	}
}

// imageUser splits the user of an image config, "user[:group]", into a uid or a
// name. An image without a user runs as root. A number that is no uid is a
// name: nobody may take it for a uid after it has been cut to 32 bits.
func imageUser(user string) (*runtimeapi.Int64Value, string) {
	user, _, _ = strings.Cut(user, ":")
	if user == "" {
		return &runtimeapi.Int64Value{Value: 0}, ""
	}
	uid, err := strconv.ParseUint(user, 10, 32)
	if err != nil {
		return nil, user
	}
	return &runtimeapi.Int64Value{Value: int64(uid)}, ""
}

// imageInfo is what crictl inspecti shows.
func imageInfo(img *image.Image) (map[string]string, error) {
	info, err := json.Marshal(map[string]any{"imageSpec": img.Config, "layers": img.Layers, "pulled": img.Created})
	if err != nil {
		return nil, fmt.Errorf("encode config of image %s: %w", img.ID, err)
	}
	return map[string]string{"info": string(info)}, nil
}
