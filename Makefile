# What people and CI type. One build serves all of it: the programs of the host, the agent of the
# guest and the tests are made by the same flags in the same directory, so that each dependency is
# compiled once. The flags make static programs: the guest has no libraries to load, and the host's
# programs run on any distribution.

SHELL := /bin/bash
.DEFAULT_GOAL := build
.PHONY: help setup build guest demo test check bench bench-image bench-kbs guest-kernel clean

TRIPLE := x86_64-unknown-linux-gnu
STATIC := -C target-feature=+crt-static
OUT := $(or $(CARGO_TARGET_DIR),target)
BIN := $(OUT)/$(TRIPLE)/release
GUEST := $(OUT)/guest
# `--locked` in CI: what is tested is what was submitted.
CARGO_FLAGS ?=

# Where the tests look for what was built.
export CLOISTER_BIN_DIR := $(abspath $(BIN))
export CLOISTER_GUEST_DIR := $(abspath $(GUEST))

STATIC_CARGO = CARGO_BUILD_TARGET=$(TRIPLE) RUSTFLAGS="$(STATIC)" RUSTDOCFLAGS="$(STATIC)" cargo

help: ## Say what there is to make
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install what is missing on this machine (Debian's packages)
	@.ci/setup

build: setup guest ## Build the host's programs, the agent and the guest image

guest:
	$(STATIC_CARGO) build --release --workspace --bins $(CARGO_FLAGS)
	$(BIN)/guest-image build --agent $(BIN)/cloister-agent --out $(GUEST)

demo: build ## Run an encrypted image in an attested VM, and see a changed guest refused
	@$(BIN)/demo

test: build ## Prove it: unit tests, conformance, end to end, hostile
	$(STATIC_CARGO) test --release --workspace $(CARGO_FLAGS)

check: ## Format, lints, the workspace's invariants, documentation, licences
	cargo fmt --all --check
	cargo clippy --workspace --all-targets $(CARGO_FLAGS) -- -D warnings
	cargo test -p tidy $(CARGO_FLAGS)
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps $(CARGO_FLAGS)
	@if cargo deny --version >/dev/null 2>&1; then cargo deny check; \
	else echo "cargo-deny is not installed: licences and bans were not checked"; fi

bench: build ## Measure starts, sizes and memory, and print them as FIGURE lines
	@$(BIN)/bench

bench-image: ## Measure pulls of images against the work that they cannot do without
	$(STATIC_CARGO) build --release -p bench --bin bench-image $(CARGO_FLAGS)
	@$(BIN)/bench-image

bench-kbs: ## Measure the key broker against the cryptography that it cannot do without
	$(STATIC_CARGO) build --release -p kbs -p bench --bin kbs --bin bench-kbs $(CARGO_FLAGS)
	@$(BIN)/bench-kbs
	@$(STATIC_CARGO) test --release -p kbs --test explain $(CARGO_FLAGS) -- --nocapture | grep '^FIGURE'

guest-kernel: ## Compile a smaller, faster kernel for the guest (a quarter of an hour; optional)
	@.ci/setup guest-kernel
	$(STATIC_CARGO) build --release -p guest-image $(CARGO_FLAGS)
	$(BIN)/guest-image compile
	@echo "the next build takes it"

clean: ## Remove what was built; kernels and downloads stay in .cache
	cargo clean
