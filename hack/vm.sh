#!/bin/bash
# Runs tests in a virtual machine, as root: on cgroup v2 alone, under systemd and
# with AppArmor, whatever this machine has.
#
#   hack/vm.sh PACKAGE... [-test.FLAG...]   as in  hack/vm.sh ./oci/cgroup ./oci -test.run OOM
#   hack/vm.sh -c COMMAND                   a shell command there, in the source tree
#
# The machine is emulated, and slow: nothing of it needs KVM. It has no network
# but loopback. Its disks are thrown away with it; what hack/setup.sh vm has built
# for it in build/vm stays. The tests are built here, without the race detector.
# What the machine says itself is in build/vm/console.
set -euo pipefail
cd "$(dirname "$0")/.."

vm=build/vm
tree=$vm/_tree # becomes /berth there
code=$vm/code # what the last command exits with

usage() { sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0" >&2; exit 2; }

# plant copies what tests need: the sources, for their data, and the programs.
plant() {
	rm -rf "$tree"
	mkdir -p "$tree/build/tools" "$tree/bin"
	git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents -t "$tree"
	CGO_ENABLED=0 go build -buildvcs=false -trimpath -tags=grpcnotrace -ldflags='-s -w' -o "$tree/bin/" ./cmd/...
	cp build/tools/registry build/tools/mkimage "$tree/build/tools/"
	cp -r /usr/local/libexec/berth "$tree/libexec"
}

# job PACKAGE FLAG... prints the command that tests a package.
job() {
	local package=$1
	shift
	CGO_ENABLED=0 go test -c -ldflags='-s -w' -o "$tree/$package/vm.test" "$package" >&2
	printf 'echo "--- %s"; cd /berth/%q && ./vm.test' "$package" "$package"
	[ $# -eq 0 ] || printf ' %q' "$@"
	printf ' || code=$?\n'
}

# boot runs /berth/run and returns its exit code.
boot() {
	rm -f "$vm/tree.ext4" "$code"
	truncate -s 2G "$vm/tree.ext4" # what is not used stays a hole
	mke2fs -q -F -t ext4 -d "$tree" "$vm/tree.ext4"
	# /tmp is of the disk: a tmpfs holds no images as a node does.
	qemu-system-x86_64 -accel tcg,thread=multi -cpu qemu64,+pdpe1gb -smp 2 -m 3G \
		-nodefaults -display none -no-reboot -nic none -device virtio-rng-pci \
		-drive file="$vm/root.ext4",if=virtio,format=raw,snapshot=on \
		-drive file="$vm/tree.ext4",if=virtio,format=raw,snapshot=on \
		-serial file:"$vm/console" -serial stdio -serial file:"$code" \
		-kernel "$vm/vmlinuz" -initrd "$vm/initrd" \
		-append "root=/dev/vda rw console=ttyS0 panic=-1 quiet systemd.mask=tmp.mount systemd.default_device_timeout_sec=infinity systemd.mount-extra=/dev/vdb:/berth:ext4 systemd.run=/berth/run" \
		</dev/null
	[ -s "$code" ] || { echo "vm: it ended before the tests; see $vm/console" >&2; return 1; }
	return "$(<"$code")"
}

[ $# -gt 0 ] || usage
hack/setup.sh vm
plant
{
	cat <<-'END'
		#!/bin/bash
		for tty in 1 2; do stty -F /dev/ttyS$tty raw; done
		exec >/dev/ttyS1 2>&1 </dev/null
		export HOME=/root REQUIRE_ROOT=1 REQUIRE_VM=1 BERTH_PROGRAMS=/berth/bin
		ln -s /berth/libexec /usr/local/libexec/berth
		cd /berth
		code=0
	END
	if [ "$1" = -c ]; then
		printf '(%s\n)\ncode=$?\n' "${2:?}"
	else
		packages=()
		while [ $# -gt 0 ] && [[ $1 != -* ]]; do packages+=("${1%/}"); shift; done
		[ ${#packages[@]} -gt 0 ] || usage
		for package in "${packages[@]}"; do job "$package" "$@"; done
	fi
	echo 'echo $code >/dev/ttyS2'
} >"$tree/run"
chmod +x "$tree/run"
boot
