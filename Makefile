# `make` lists the targets. Only `fix` edits files.
SHELL := /bin/bash
.DEFAULT_GOAL := help
SEED ?= 1
KILLS ?= 200
SECONDS ?= 120
ONLY ?=
SCENARIO ?= mixed
export CCACHE_DIR ?= $(HOME)/.cache/orchestra/ccache
TARGET := $(or $(CARGO_TARGET_DIR),target)
# All of it, whatever is run: another choice of packages has other features, and compiles most of it again.
RELEASE := cargo build --locked --release --workspace --bins

help: ## Lists the targets.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

setup: ## Installs what the build needs and is missing: g++, libclang and ccache, from Debian.
	@deploy/dev/setup.sh

build: setup ## Builds the binary.
	cargo build --locked --workspace --bins

demo: build ## Runs the main job on a small project, with a kill -9 in the middle.
	BINARY_UNDER_TEST=$(TARGET)/debug/orchestra docs/examples/demo.sh

cluster: build ## Three nodes on this machine, and what to try: kill one, watch the others.
	$(TARGET)/debug/orchestra dev --nodes 3

test: setup ## Runs every test.
	@deploy/dev/setup.sh testing
	@deploy/dev/previous.sh || { [ -z "$$CI" ] && echo "NOT RUN: the upgrade between two releases"; }
	cargo build --locked --workspace --bins
	cargo test --locked --workspace

docs-test: setup ## Runs the commands of docs/operations.md, in an empty directory.
	@deploy/dev/previous.sh
	cargo build --locked --workspace --bins
	PATH="$(abspath $(TARGET))/debug:$(abspath $(TARGET))/previous:$$PATH" docs/run-blocks.sh docs/operations.md

ui-test: setup ## Clicks through the dashboard in headless Chromium: SCREENSHOTS=directory keeps pictures.
	@deploy/dev/setup.sh browser
	cargo build --locked --workspace --bins
	npm ci --silent --prefix crates/server/ui-test
	BINARY="$(abspath $(TARGET))/debug/orchestra" node crates/server/ui-test/test.js
	BINARY="$(abspath $(TARGET))/debug/orchestra" node crates/server/ui-test/breach.js

lint: setup ## Formatting, clippy, licences and sources of dependencies, without edits.
	@deploy/dev/setup.sh cargo-deny
	cargo fmt --all --check
	cargo deny --locked --config .deny.toml check --hide-inclusion-graph bans licenses sources
	cargo clippy --locked --workspace --all-targets -- -D warnings

fix: ## Formats.
	cargo fmt --all

crash: build ## kill -9 at seeded moments under load: SEED=n KILLS=n.
	$(TARGET)/debug/chaos crash --seed $(SEED) --kills $(KILLS)

cluster-test: build ## Faults on clusters of three and five nodes under load: SEED=n.
	$(TARGET)/debug/chaos cluster --seed $(SEED) --nodes 3 --faults 18
	$(TARGET)/debug/chaos cluster --seed $(SEED) --nodes 5 --faults 18

soak: build ## What takes long: 20 seeds of cluster-test, half an hour of full load, 1 GiB to a new node, a million sessions backed up: SEED=first.
	for seed in $$(seq $(SEED) $$(($(SEED) + 19))); do $(MAKE) --no-print-directory cluster-test SEED=$$seed || exit 1; done
	$(RELEASE)
	$(TARGET)/release/loadtest soak --directory $(TARGET)
	$(TARGET)/release/loadtest intake --directory $(TARGET)
	$(TARGET)/release/loadtest backup --directory $(TARGET)

chaos-suite: build ## Every fault on 3 and 5 nodes, for 20 seeds: SEED=first SECONDS=each.
	$(TARGET)/debug/chaos suite --seeds $(SEED)..$$(($(SEED) + 19)) --nodes 3,5 --seconds $(SECONDS) --out $(TARGET)/chaos --resume

dr-drill: build ## Loses a whole cluster between two backups and restores it in another size: RTO and RPO: SEED=n.
	$(TARGET)/debug/chaos drill --seed $(SEED)

mutants: setup ## Builds that break a promise on purpose, each of which must be found out: SEED=first.
	cargo build --locked --workspace --bins --features cli/mutants
	mv $(TARGET)/debug/orchestra $(TARGET)/debug/orchestra-mutants
	cargo build --locked --workspace --bins
	$(TARGET)/debug/chaos mutants --seed $(SEED)

vendor-chaos: build ## A map of 100 items against failing vendors: SEED=n.
	$(TARGET)/debug/chaos vendor --seed $(SEED)

bench: setup ## Measures against the targets of docs/benchmarks.md, in a release build: ONLY=part of a name.
	$(RELEASE)
	$(TARGET)/release/loadtest bench --directory $(TARGET) --only "$(ONLY)"
	[ -n "$(ONLY)" ] || taskset -c 0 $(TARGET)/release/chaos switch

load: setup ## Puts a load on three nodes of its own, with a verdict: SCENARIO=name or a file.
	$(RELEASE)
	$(TARGET)/release/loadtest run $(SCENARIO) --nodes 3 --directory $(TARGET) --out $(TARGET)/load

bench-peers: setup ## The same work on Orchestra, Restate and etcd, in one run: rewrites the comparison in docs/benchmarks.md.
	$(RELEASE)
	server=$$(deploy/dev/peers.sh "$(abspath $(TARGET))") && $(TARGET)/release/loadtest peers --restate "$$server" --directory $(TARGET) --write docs/benchmarks.md

.PHONY: help setup build demo cluster test docs-test ui-test lint fix crash cluster-test soak chaos-suite dr-drill mutants vendor-chaos bench load bench-peers
