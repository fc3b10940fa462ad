#!/bin/bash
# Installs what Berth needs on a Debian machine that has Go; needs root.
#
#   hack/setup.sh run    what runs pods: runc, crun and the CNI plugins
#   hack/setup.sh demo   and what the quick start shows them with: a registry and an image
#   hack/setup.sh test   and what the tests need besides: strace, iptables, which CNI plugins run where they
#                        find it, and the cgroup hierarchies that crun insists on
#   hack/setup.sh node   and what the tests with a real kubelet need: the kubelet, minutes of building
#   hack/setup.sh bench  and what Berth is compared with: containerd, minutes of building
#   hack/setup.sh vm     and what the tests in a virtual machine need: qemu, and a Debian of their own
#   hack/setup.sh lint   the linters alone; needs no root
#
# It does only what is not done yet: a second run takes a second. The programs
# are pinned by the go.mod files below hack/tools; what runs on a node goes to
# /usr/local/libexec/berth, the rest to build/tools.
set -euo pipefail
cd "$(dirname "$0")/.."

libexec=/usr/local/libexec/berth
tools=$PWD/build/tools

# debs PACKAGE... installs the ones that are missing.
debs() {
	local missing=() p
	for p; do
		dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null | grep -qx installed || missing+=("$p")
	done
	[ ${#missing[@]} -eq 0 ] && return
	echo "setup: installing ${missing[*]}"
	export DEBIAN_FRONTEND=noninteractive
	apt-get -qq update
	apt-get -qq install --no-install-recommends -y "${missing[@]}" >/dev/null
}

# build TOOL DIR PROGRAM PACKAGE [FLAG...] builds PACKAGE in hack/tools/TOOL as
# DIR/PROGRAM. The digest of what pins the build lies beside the program: while
# it is the same, so is the program. The rename lets a running one finish.
build() {
	local tool=$1 dir=$2 program=$3 package=$4 pins
	shift 4
	pins=$(cd "hack/tools/$tool" && { go version; echo "$package $*"; cat go.mod go.sum ./*.go 2>/dev/null || true; } | sha256sum)
	[ -x "$dir/$program" ] && [ "$(cat "$dir/.$program.pins" 2>/dev/null)" = "$pins" ] && return
	echo "setup: building $program"
	mkdir -p "$dir"
	(cd "hack/tools/$tool" && go build -buildvcs=false -trimpath "$@" -o "$dir/.$program.new" "$package")
	mv "$dir/.$program.new" "$dir/$program"
	echo "$pins" >"$dir/.$program.pins"
}

run() {
	debs crun nftables iproute2 gcc libc6-dev libseccomp-dev pkg-config
	# It loads the profile of containers where there is AppArmor.
	[ "$(cat /sys/module/apparmor/parameters/enabled 2>/dev/null)" != Y ] || debs apparmor
	build runc "$libexec" runc github.com/opencontainers/runc -tags=seccomp
	local package
	for package in $(cd hack/tools/cni && go list -f '{{.ImportPath}}' tool); do
		CGO_ENABLED=0 build cni "$libexec/cni" "${package##*/}" "$package"
	done
}

demo() {
	debs busybox-static curl
	CGO_ENABLED=0 build registry "$tools" registry .
	CGO_ENABLED=0 build mkimage "$tools" mkimage .
}

# legacy_controllers mounts the hierarchies that a hybrid machine (cgroup v1 with
# cgroup2 beside it) left out. crun refuses such a machine as long as cgroup2
# has a controller.
legacy_controllers() {
	local controller
	[ -e /sys/fs/cgroup/unified/cgroup.controllers ] || return 0
	for controller in $(</sys/fs/cgroup/unified/cgroup.controllers); do
		echo "setup: mounting the cgroup v1 hierarchy of $controller"
		mkdir -p "/sys/fs/cgroup/$controller"
		mount -t cgroup -o "$controller" cgroup "/sys/fs/cgroup/$controller"
	done
}

kubelet() {
	local version
	version=$(cd hack/tools/kubelet && go list -m -f '{{.Version}}' k8s.io/kubernetes)
	CGO_ENABLED=0 build kubelet "$tools" kubelet k8s.io/kubernetes/cmd/kubelet \
		-ldflags="-s -w -X k8s.io/component-base/version.gitVersion=$version"
}

# containerd is built with the flags of its own releases; the pause image of a
# release is a static C program like ours.
containerd() {
	local version flags
	version=$(cd hack/tools/containerd && go list -m -f '{{.Version}}' github.com/containerd/containerd/v2)
	flags="-s -w -X github.com/containerd/containerd/v2/version.Version=$version"
	CGO_ENABLED=0 build containerd "$tools" containerd . -tags=urfave_cli_no_docs -ldflags="$flags"
	CGO_ENABLED=0 build containerd "$tools" containerd-shim-runc-v2 \
		github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2 -tags=urfave_cli_no_docs,no_grpc -ldflags="$flags"
	[ "$tools/pause" -nt hack/tools/pause/pause.c ] || cc -static -Os -s -o "$tools/pause" hack/tools/pause/pause.c
}

# vm makes the disk, kernel and initrd that hack/vm.sh boots. MIRROR is a mirror of
# Debian, if not the usual one.
vm() {
	local packages=linux-image-cloud-amd64,systemd-sysv,apparmor,crun,libseccomp2,nftables,iproute2,busybox-static,procps
	local dir=build/vm
	debs qemu-system-x86 debootstrap debian-archive-keyring e2fsprogs
	[ "$(cat "$dir/packages" 2>/dev/null)" = "$packages" ] && return
	echo "setup: installing a Debian in $dir"
	rm -rf --one-file-system "$dir"
	mkdir -p "$dir"
	debootstrap --variant=minbase --include="$packages" trixie "$dir/root" ${MIRROR:+"$MIRROR"} >"$dir/debootstrap.log"
	# A hundred profiles of desktop programs, and the chores of a first boot, take
	# minutes in emulation.
	find "$dir/root/etc/apparmor.d" -maxdepth 1 -type f ! -name runc ! -name crun -delete
	touch "$dir/root/etc/.updated" "$dir/root/var/.updated"
	cp "$dir"/root/boot/vmlinuz-* "$dir/vmlinuz"
	cp "$dir"/root/boot/initrd.img-* "$dir/initrd"
	truncate -s 4G "$dir/root.ext4"
	mke2fs -q -F -t ext4 -d "$dir/root" "$dir/root.ext4"
	rm -rf --one-file-system "$dir/root"
	echo "$packages" >"$dir/packages"
}

lint() {
	CGO_ENABLED=0 build lint "$tools" golangci-lint github.com/golangci/golangci-lint/v2/cmd/golangci-lint
}

case ${1-} in
run) run ;;
demo) run; demo ;;
test) run; demo; debs strace iptables; legacy_controllers ;;
node) run; demo; legacy_controllers; kubelet ;;
bench) run; demo; legacy_controllers; containerd ;;
vm) run; demo; vm ;;
lint) lint ;;
*)
	sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0" >&2
	exit 2
	;;
esac
