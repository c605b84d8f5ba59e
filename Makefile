# The one face for every task. The work is done by the scripts named here.

.DEFAULT_GOAL := help
.PHONY: help build run test conformance-cri conformance-oci soak bench bench-containerd bench-network bench-oci test-host test-host-sh test-host-down lint install deb node-image clean
export PREFIX DESTDIR FILTER CMD SUITE RUNTIMES CONTAINERD

help: ## show this list
	@echo 'Targets:'
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 18 | sed 's/^/  /'

build: ## build the binaries, the guest kernel and the initramfs
	@scripts/build

run: ## run a container in a micro-VM and show both kernels
	@scripts/run

test: ## run all tests; SUITES="unit kernel e2e" picks some, FILTER=WORD picks end-to-end tests by name
	@scripts/test $(SUITES)

conformance-cri: ## run critest, the tests of CRI runtimes: FILTER=WORD, RUNTIMES=nacre, CONTAINERD=1 or 2
	@tests/conformance/cri

conformance-oci: ## run youki's tests of OCI runtimes: SUITE=DIR, see tests/README.md
	@tests/conformance/oci

soak: ## run the end-to-end tests with large counts: takes hours
	@NACRE_SOAK=1 scripts/test e2e

bench-containerd: ## measure starts and execs under containerd beside runc
	@tests/bench/containerd

bench: ## measure, beside the peers whose binaries are given by path
	@tests/bench/run

bench-network: ## measure the network beside runc and QEMU's microvm
	@tests/bench/network

bench-oci: ## measure exec and output by the command line, beside runc
	@tests/bench/oci

test-host: ## bring the test host up and keep it
	@scripts/deps test-host
	@tests/host/up

test-host-sh: ## run a command in the test host, with the current build at /nacre: CMD='vm-run check'
	@tests/host/sh $(if $(value CMD),"$$CMD")

test-host-down: ## take the test host down
	@tests/host/down

lint: ## check format, clippy and the shell scripts
	@scripts/lint

install: ## install below PREFIX (/usr/local), staged in DESTDIR
	@scripts/install

deb: ## pack what `make build` made as a Debian package
	@scripts/deb

node-image: ## make the image of the DaemonSet out of the Debian package
	@scripts/node-image

clean: ## remove what was built; the caches in ~/.cache/nacre stay
	@tests/host/down
	@rm -rf target
