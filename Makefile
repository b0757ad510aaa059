# The front door. Each target first makes sure of what it needs.
.PHONY: help demo test bench fuzz fuzz-smoke build prerequisites clean
.DEFAULT_GOAL := help

PG_BIN ?= /usr/lib/postgresql/15/bin

help: ## Show this text
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

demo: prerequisites ## Build, then show the main job on a throw-away data directory
	cargo build --release -p treering
	target/release/treering demo

test: prerequisites ## Unit, property, crash and end-to-end tests against real Postgres
	cargo build -p treering
	cargo test --workspace

bench: prerequisites ## All benchmark scenarios, then the criterion micro benches
	cargo build --release -p treering
	cargo run --release -p treering-bench -- run
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

clean: ## Remove what was built
	cargo clean
	cargo clean --manifest-path fuzz/Cargo.toml
