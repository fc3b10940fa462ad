// Package rootfs makes directories of layers and mounts them as a container's
// root: Extract is the tar side, Mount the overlay side.
//
// A layer's tree is shared by all images that have the layer, whatever lies
// beneath it there. So it is extracted alone, in overlayfs's own terms: a
// whiteout is a 0/0 character device, an opaque directory has
// trusted.overlay.opaque. A directory with whiteouts also gets
// trusted.overlay.origin: without it overlayfs shows a whiteout as a name
// wherever no lower layer has that directory, because it does not look for
// whiteouts in a directory that it need not merge.
//
// Tars are hostile. Extract resolves each name by itself, symlinks included,
// as if the tree were the whole filesystem; it opens directories beneath the
// tree's root only, which the kernel checks even if that resolution were wrong;
// and it makes things by name only in such an open directory, never through a
// symlink. Extended attributes that mean something to overlayfs are dropped: the
// redirects of a writable layer, where a container has renamed directories, are the
// kernel's own. Time is linear in the bytes of the tar, and memory holds only what no
// file tells: the paths of implied directories, and default ACLs.
//
// What a container made is as hostile: RemoveAll and Copy hold a bounded number of
// descriptors, however deep a tree is.
//
// Read in this order: extract.go (one entry after the other), entry.go (each
// kind of entry), whiteout.go, resolve.go (where a name leads), attr.go,
// implied.go, removeall.go, mount.go, users.go, copy.go (what a volume begins with).
package rootfs
