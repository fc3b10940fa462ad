// Package image pulls, keeps and mounts container images.
//
// A layer is one immutable tar named by its own sha256 (its diffID); a visible
// image is a complete image. The package knows nothing of CRI.
//
// On disk, below Store.Dir (everything 0700 and 0600):
//
//	layers/sha256/<diffID>/{layer.tar, meta.json}  visible only by rename, after
//	                        both digests were checked and the data was synced
//	blobs/sha256/<digest>   manifests, indexes and configs, bit-exact
//	images/<hash(ref)>.json one record per reference; written last, removed first
//	containers/<id>/        {root.json, upper, work, empty, adopted}: writable layers, and
//	                        views/<image id>/ of the same kind, of images that the
//	                        container has mounted beside its root, and volumes/<n>,
//	                        the volumes of its image
//	trees/<boot id>/<diffID>/{root, tree.json}  layers extracted: a cache that is
//	                        never synced and so is of one boot
//	ingest/ trash/          what is being made, and what is being deleted
//	lock                    held by the process that has the store open
//
// Invariants, all of them checked by the tests after each test:
//
//   - sha256(layer.tar) is the name of its directory.
//   - Whatever a record names is there: manifest, config and every layer.
//   - A layer or blob is there only while something claims it: a record, a
//     writable layer or a view beside it, a pull under way, or for a while one
//     that failed. The claim comes before the content and goes after it.
//   - A crash between any two steps leaves what Open accepts: content without
//     a claim is deleted, and a record without its content is withdrawn.
//   - A layer is used without a fetch only for a compressed blob that was once
//     fetched and inflated to it (meta.json), never because a config names it.
//   - No pull waits for what another registry has only promised, nor keeps a layer
//     that it has only named.
//
// Locks: busy (who fetches a promise), then slots (how many layers are
// downloaded), then busy (by container, then by layer: who makes it), then mu.
// mu guards the maps and Registries and is held over single renames and unlinks at
// most, never over the network or data. deleting is held by the deletion under
// way; survey.mu, slots.mu and Watch.mu are leaves.
//
// Read in this order: image.go (what callers see), disk.go (paths and small
// files), keyed.go (one at a time), tasks.go, claim.go (who needs what), record.go, open.go, ref.go, names.go,
// manifest.go, platform.go, resolve.go, pull.go, promise.go, slots.go, kept.go, ingest.go, budget.go, spool.go, watch.go,
// tree.go, root.go,
// view.go, volumes.go, remove.go, usage.go (survey.go, walk.go: writable layers measured), space.go.
package image
