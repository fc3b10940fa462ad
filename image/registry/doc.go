// Package registry reads manifests and blobs from an OCI distribution registry
// (OCI distribution-spec 1.1, Docker registry HTTP API V2).
//
// A registry is hostile until a digest proves otherwise. The package keeps
// these promises, whatever a registry answers:
//
//   - A credential goes to the registry's own host, or to a token server of the
//     same registrable domain over HTTPS, and nowhere else: guard.go, which
//     sits below redirects and the token flow, so that neither can leave it out.
//   - Answers are read up to a size that the caller declared.
//   - A registry that falls silent is left after Timeout.
//   - A blob whose connection breaks goes on where it broke.
//
// What it does not do: it verifies no blob digest (image/layer does while it
// inflates) and stores nothing.
//
// Read in this order: repository.go, manifest.go, blob.go, guard.go, auth.go,
// errors.go, stall.go.
package registry
