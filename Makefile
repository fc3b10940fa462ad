# make quickstart   shows Berth at work on this machine
# make test         passes every test
# make test-node    passes those with a real kubelet, which takes minutes to build
# make bench-pods   compares Berth with containerd; BENCH='-h' lists options
# make test-vm      passes those that look at cgroup v2, systemd and AppArmor, in an
#                   emulated machine: an hour or more; no part of make test or CI
# All need Debian, Go and root, and install what else is missing: hack/setup.sh.

PREFIX ?= /usr/local
RACE   ?= -race

# Stamping the commit fails where root builds in another user's tree.
export GOFLAGS := $(GOFLAGS) -buildvcs=false

# Test binaries play many short programs; each would sleep a second at its end.
export GORACE := atexit_sleep_ms=0

.PHONY: build quickstart test test-node test-vm bench-pods lint vuln install clean

# Without the tag, pages of gRPC that nobody serves make berthd a third larger.
build:
	CGO_ENABLED=0 go build -trimpath -tags=grpcnotrace -ldflags='-s -w' -o bin/ ./cmd/...

quickstart: build
	hack/setup.sh demo
	hack/quickstart.sh

# One package at a time: tests compare the mounts and cgroups of the whole machine.
test: build
	hack/setup.sh test
	go test -count=1 -p 1 -timeout 20m $(RACE) ./...
	go test -C hack/bench -count=1 .

# The kubelet changes sysctls, mounts and the network: not those of the machine.
test-node: build
	hack/setup.sh node
	REQUIRE_ROOT=1 go test -count=1 -v -tags=node -timeout 30m $(RACE) -exec='unshare --mount --net' ./test/node

# Measures on a machine that does nothing else: docs/performance.md.
bench-pods: build
	hack/setup.sh bench
	CGO_ENABLED=0 go build -C hack/bench -o ../../build/tools/bench .
	build/tools/bench $(BENCH)

# VM_TESTS and VM_PACKAGES choose among them.
VM_PACKAGES ?= ./oci/cgroup ./oci ./sandbox ./test/conformance
VM_TESTS ?= AppArmor|Cgroup|Device|Dir|ForkBomb|Kill|Limits|OOM|Privileged|Resources|Restore|RootFS|Seccomp|Security|Start|Stats|Systemd|Update|UserNamespace|Restricted
test-vm:
	hack/vm.sh $(VM_PACKAGES) -test.v -test.run '$(VM_TESTS)'

lint:
	hack/setup.sh lint
	build/tools/golangci-lint run ./...
	cd hack/bench && ../../build/tools/golangci-lint run ./...
	go mod tidy -diff
	go mod tidy -C hack/bench -diff

# Asks vuln.go.dev.
vuln:
	go tool -modfile=hack/tools/lint/go.mod govulncheck ./...

install: build
	install -D -t $(DESTDIR)$(PREFIX)/bin bin/berth bin/berthd
	install -D -t $(DESTDIR)$(PREFIX)/libexec/berth bin/berth-keeper

clean:
	rm -rf bin build
