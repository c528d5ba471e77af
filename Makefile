# The one interface to the project: people and CI run the same lines. `make help` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
CARGO := cargo
export STILLPOINT_CACHE ?= $(CURDIR)/.cache
RELEASE := target/release

.PHONY: help
help: ## This list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | column -t -s '|'

.PHONY: build
build: ## The server, the webhooks and the plugin, release build, in target/release
	$(CARGO) build --release --locked -p apiserver -p cli
	# Alone: built with the others it would get the features that they want of what is shared, and their Kubernetes client.
	$(CARGO) build --release --locked -p webhooks

# A target is named so that what runs while it is built is not static, too: procedural macros cannot be.
HOST = $(shell rustc -vV | sed -n 's/^host: //p')
.PHONY: agent
agent: ## The agent, release build, static, in target/release
	RUSTFLAGS='-C target-feature=+crt-static' $(CARGO) build --release --locked -p agent --target $(HOST)
	mkdir -p $(RELEASE)
	install target/$(HOST)/release/stillpoint-agent $(RELEASE)/stillpoint-agent
	@! ldd $(RELEASE)/stillpoint-agent 2>/dev/null | grep '=>' || { echo 'it is not static'; exit 1; }

.PHONY: runner
runner: ## The runner of dumps and restores, release build, static, in target/release
	RUSTFLAGS='-C target-feature=+crt-static' $(CARGO) build --release --locked -p runner --target $(HOST)
	mkdir -p $(RELEASE)
	install target/$(HOST)/release/stillpoint-runner $(RELEASE)/stillpoint-runner
	@! ldd $(RELEASE)/stillpoint-runner 2>/dev/null | grep '=>' || { echo 'it is not static'; exit 1; }

.PHONY: go
go:
	@tests/tools/go

.PHONY: setup
setup: ## Debian packages that the tests want (needs root once; nothing when they are there)
	tests/tools/setup

.PHONY: test
test: go setup lint ## Everything but the long suites
	$(CARGO) build --locked -p apiserver -p cli -p agent
	$(CARGO) test --workspace --features tests/cluster --locked

.PHONY: lint
lint: ## Formatting, clippy, and that no second crypto provider is linked; warnings are errors
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --features tests/cluster,tests/node --locked -- -D warnings
	@if $(CARGO) tree --workspace --locked -e normal,build -i aws-lc-rs >/dev/null 2>&1 || $(CARGO) tree --workspace --locked -e normal,build -i openssl-sys >/dev/null 2>&1; then \
		echo 'aws-lc-rs or OpenSSL is linked; ring is the only crypto provider (CONTRIBUTING.md)'; exit 1; fi

.PHONY: demo-build
demo-build: ## Build what the demo runs, and fetch its databases
	$(CARGO) build --release --locked -p apiserver -p cli -p tests --bins
	$(RELEASE)/demo --fetch-only

.PHONY: demo
demo: setup demo-build ## What is lost without Stillpoint, and with it: real databases, a short report
	$(RELEASE)/demo

.PHONY: soak
soak: setup soak-node ## The long suites: at least 300 cuts per engine and level, and the series of snapshots on a node
	$(CARGO) build --release --locked -p apiserver -p cli -p tests --bins
	$(RELEASE)/soak

.PHONY: soak-node
soak-node: setup agent runner ## Of these, the series on a node: snapshots with Stillpoint, with exec hooks and with nothing (needs root)
	$(CARGO) build --release --locked -p apiserver -p csi
	$(CARGO) build --release --locked -p webhooks
	$(CARGO) test --release --locked -p tests --features node --test node -- series:: --ignored --nocapture --test-threads 1

.PHONY: bench
bench: setup ## The numbers, each beside its yardstick in one run
	$(CARGO) build --release --locked -p apiserver -p cli -p tests --bins
	$(RELEASE)/bench
	$(RELEASE)/bench-copies

.PHONY: manifests
manifests: ## Write what is applied to a cluster (deploy/) from the code that it belongs to
	$(CARGO) run --locked -p deploy --bin manifests -- deploy

.PHONY: test-cluster
test-cluster: go setup ## Of the tests, those behind a real kube-apiserver, which is built first
	$(CARGO) build --locked -p apiserver -p cli -p agent
	$(CARGO) test --workspace --features tests/cluster --locked --test aggregated

.PHONY: bench-cluster
bench-cluster: go setup agent ## The numbers of replicas behind a real kube-apiserver, beside a standalone server's
	$(CARGO) build --release --locked -p apiserver -p cli
	$(CARGO) test --release --workspace --features tests/cluster --locked --test aggregated -- numbers --ignored --nocapture --test-threads 1

.PHONY: conformance
conformance: ## Write docs/conformance.md from the cases that `make test-cluster` runs
	STILLPOINT_WRITE=1 $(CARGO) test --workspace --features tests/cluster --locked --test aggregated the_document_says

.PHONY: test-node
test-node: go setup ## Real Pods, volumes and snapshots, on a node that is built first (needs root)
	$(CARGO) build --locked -p apiserver -p csi -p agent -p runner
	$(CARGO) build --locked -p webhooks
	$(CARGO) test --locked -p csi
	$(CARGO) test --locked -p cluster --features node --test node
	$(CARGO) test --locked -p tests --features node --test node

.PHONY: cluster
cluster: ## A Kubernetes 1.35 that stays; prints its KUBECONFIG for the shell. NODE=1: with a node and storage (needs root)
	@$(if $(NODE),$(CARGO) build --quiet --locked -p csi)
	@$(CARGO) run --quiet --locked -p cluster -- up $(if $(NODE),--node)

.PHONY: cluster-down
cluster-down: ## End it, and remove what it stored
	@$(CARGO) run --quiet --locked -p cluster -- down

.PHONY: clean
clean: ## Remove target/ and the cache
	@if [ -e $(STILLPOINT_CACHE)/cluster/processes ]; then echo 'a cluster keeps its data in the cache: run `make cluster-down` first'; exit 1; fi
	rm -rf target $(STILLPOINT_CACHE)
