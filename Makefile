# The one face for every task. The work is done by the scripts named here.

.DEFAULT_GOAL := help
.PHONY: help build run test soak bench bench-containerd bench-network test-host test-host-sh test-host-down lint install clean
export PREFIX DESTDIR FILTER CMD

help: ## show this list
	@echo 'Targets:'
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 16 | sed 's/^/  /'

build: ## build the binaries, the guest kernel and the initramfs
	@scripts/build

run: ## run a container in a micro-VM and show both kernels
	@scripts/run

test: ## run all tests; SUITES="unit kernel e2e" picks some, FILTER=WORD picks end-to-end tests by name
	@scripts/test $(SUITES)

soak: ## run the end-to-end tests with large counts: takes hours
	@NACRE_SOAK=1 scripts/test e2e

bench-containerd: ## measure starts and execs under containerd beside runc
	@tests/bench/containerd

bench: ## measure, beside the peers whose binaries are given by path
	@tests/bench/run

bench-network: ## measure the network beside runc and QEMU's microvm
	@tests/bench/network

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

clean: ## remove what was built; the caches in ~/.cache/nacre stay
	@tests/host/down
	@rm -rf target
