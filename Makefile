# The front door. Each target first makes sure of what it needs.
.PHONY: help demo test test-all test-long test-real verify-redo bench fuzz fuzz-smoke build prerequisites postgres-17 clean
.DEFAULT_GOAL := help

PG_BIN ?= /usr/lib/postgresql/15/bin

help: ## Show this text
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

demo: prerequisites ## Build, then show the main job on a throw-away data directory
	cargo build --release -p treering
	target/release/treering demo

test: prerequisites postgres-17 ## Unit, property, crash and end-to-end tests against real Postgres
	cargo build -p treering
	cargo test --workspace

# One selection of packages, so that everything is built once.
RELEASE = cargo build --release -p treering -p treering-xtask -p treering-tests -p treering-bench
XTASK = target/release/xtask

test-all: test ## The same, then lazy pages under 16, 18 and Postgres's own suite, and redo of the workloads on PostgreSQL 16 and 18
	scripts/postgres-binaries 16 18
	scripts/regression-source
	$(RELEASE)
	for major in 16 18; do \
		$(XTASK) workload --major $$major --save $$major-checksums && \
		$(XTASK) workload --major $$major --plain --save $$major-plain || exit 1; \
	done
	cargo test -p treering-compute-proxy -p treering-pages -p treering-tests --lib --test preload --test lazy -- --ignored
	target/release/regression_lazy

MODEL_CASES ?= 10000
SIMULATOR_TIMES ?= 40
FAULT_SECONDS ?= 600

test-long: prerequisites postgres-17 ## The random tests at length: MODEL_CASES lives of the engine, SIMULATOR_TIMES the usual lives of the quorum, FAULT_SECONDS of faults
	TREERING_MODEL_CASES=$(MODEL_CASES) cargo test -p treering-engine --test model -- --nocapture
	cargo test -p treering-engine --test crash --test bit_flips --test size
	SIMULATOR_TIMES=$(SIMULATOR_TIMES) cargo test -p treering-consensus --test simulator -- --nocapture
	cargo test --release -p treering-consensus --test spec -- --nocapture --include-ignored --test-threads 1
	cargo build -p treering
	FAULT_SECONDS=$(FAULT_SECONDS) cargo test -p treering-tests --test faults -- --nocapture --test-threads 1

MINUTES ?= 30
SCALE ?= 100
BRANCHES ?= 200

test-real: prerequisites ## pgbench for MINUTES at SCALE while BRANCHES come and go; amcheck, scrub, space
	$(RELEASE)
	target/release/real_data $(MINUTES) $(SCALE) $(BRANCHES)

verify-redo: prerequisites postgres-17 ## Redo judged by Postgres: workloads on 15 and 17, the regression suite of 15; docs/redo.md
	scripts/regression-source
	$(RELEASE)
	for major in 15 17; do \
		$(XTASK) workload --major $$major --save $$major-checksums && \
		$(XTASK) workload --major $$major --plain --save $$major-plain || exit 1; \
	done
	$(XTASK) regress --save regress15
	target/release/regression
	$(XTASK) coverage

bench: prerequisites ## All benchmark scenarios, then the criterion micro benches
	$(RELEASE)
	target/release/treering-bench run
	cargo bench -p treering-bench

FUZZ_SECONDS ?= 600

fuzz: prerequisites ## Hostile input, 10 minutes a target (FUZZ_SECONDS), two targets at a time
	scripts/fuzz $(FUZZ_SECONDS)

fuzz-smoke: prerequisites ## The same for 10 seconds a target
	scripts/fuzz 10

build: prerequisites ## Build the one binary, optimised
	cargo build --release -p treering

prerequisites:
	@scripts/prerequisites

postgres-17: prerequisites
	@scripts/prerequisites tests
	scripts/postgres-binaries 17

clean: ## Remove what was built
	cargo clean
	cargo clean --manifest-path fuzz/Cargo.toml
