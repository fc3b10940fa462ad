// Package registry reads manifests and blobs from an OCI distribution registry
// (OCI distribution-spec 1.1, Docker registry HTTP API V2).
//
// A registry is hostile until a digest proves otherwise. The package keeps
// these promises, whatever a registry answers:
//
//   - A credential goes to the registry's own origin, or to the token server
//     that this origin names in a 401, over HTTPS, and nowhere else: guard.go,
//     which sits below redirects and the token flow, so that neither can leave
//     it out.
//   - Answers are read up to a size that the caller declared.
//   - A registry that falls silent, or drips, is left when the patience of a
//     transfer ends, however often it breaks the connection: pace.go.
//   - A blob whose connection breaks goes on where it broke.
//   - No error holds the query of a URL, which may be a signature, and what an
//     error repeats of foreign text is short and printable: quote.go.
//
// What it does not do: it verifies no blob digest (image/layer does while it
// inflates) and stores nothing.
//
// Read in this order: repository.go, manifest.go, blob.go, pace.go, auth.go,
// challenge.go, token.go, send.go, guard.go, errors.go, quote.go.
package registry
