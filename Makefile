# biha: `make demo` shows it, `make check` proves it, `make install` installs it.

PG_CONFIG ?= pg_config
CARGO     ?= cargo
PREFIX    ?= /usr/local
PGRX      := 0.18.1

# The system's PostgreSQL belongs to root.
SUDO      := $(if $(filter 0,$(shell id -u)),,sudo)
TARGET    := $(if $(CARGO_TARGET_DIR),$(CARGO_TARGET_DIR),target)
# Looked up when first needed: `make deps` may have to install PostgreSQL first.
PG         = pg$(shell $(PG_CONFIG) --version | sed -E 's/^PostgreSQL ([0-9]+).*/\1/')
FEATURES   = --no-default-features --features $(PG)
# Named together for whatever is built of them: cargo then builds what they share once.
CRATES     = -p biha-core -p biha-io -p bihactl -p biha-cluster-tests
# Servers run as postgres where this runs as root.
RUNAS      = $(if $(SUDO),,--runas postgres --pgdata $(PGTESTDIR))
PGTESTDIR := $(or $(TMPDIR),/tmp)/biha-pgrx-test

.PHONY: help
help:
	@echo 'make demo       three servers, a write load, a killed leader, a switchover'
	@echo 'make check      everything that is tested'
	@echo 'make bench      the figures, beside their targets'
	@echo 'make install    build for $(PG_CONFIG) and install there; bihactl to $(PREFIX)/bin'
	@echo 'make uninstall  remove both'
	@echo 'make chaos      150 faults of every kind on real servers'
	@echo 'make soak       the model one fault deeper, a million simulated clusters, faults on real servers for HOURS (8)'
	@echo 'make soak-fuzz  hostile bytes with libFuzzer, SOAK_SECONDS (3600) for each target'
	@echo 'make build | fmt | lint | fuzz | deps'

# What building and testing need, where it is missing.
.PHONY: deps
deps:
	@scripts/deps $(PGRX)

.PHONY: build
build:
	$(CARGO) build --release $(FEATURES)
	$(CARGO) build --release -p bihactl

.PHONY: install
install:
	$(CARGO) pgrx install --release $(if $(SUDO),--sudo) --pg-config $(PG_CONFIG) $(FEATURES)
	$(CARGO) build --release -p bihactl
	$(SUDO) install -D -m 755 $(TARGET)/release/bihactl $(DESTDIR)$(PREFIX)/bin/bihactl

.PHONY: uninstall
uninstall:
	$(SUDO) rm -f "$$($(PG_CONFIG) --pkglibdir)/biha.so" "$$($(PG_CONFIG) --sharedir)/extension/biha.control" \
	    "$$($(PG_CONFIG) --sharedir)"/extension/biha--*.sql $(DESTDIR)$(PREFIX)/bin/bihactl

.PHONY: fmt
fmt:
	$(CARGO) fmt --all
	$(CARGO) fmt --manifest-path fuzz/Cargo.toml

.PHONY: lint
lint:
	$(CARGO) fmt --all -- --check
	$(CARGO) fmt --manifest-path fuzz/Cargo.toml -- --check
	$(CARGO) clippy --workspace --all-targets $(FEATURES) -- -D warnings
	$(CARGO) clippy --manifest-path fuzz/Cargo.toml --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --workspace --no-deps --document-private-items $(FEATURES)

.PHONY: check
check: deps
	$(CARGO) fmt --all -- --check
	$(MAKE) test-crates test-server test-side-by-side

# All but the proofs and what needs a cluster.
CRATE_TESTS = image properties scenarios wire hostile intruders network real_server
.PHONY: test-crates
test-crates:
	$(CARGO) test $(CRATES) --no-run
	$(CARGO) test $(CRATES) --lib --bins $(CRATE_TESTS:%=--test %)

# Model checking, and 10,000 simulated clusters.
.PHONY: test-proofs
test-proofs:
	$(CARGO) test $(CRATES) --test model --test faults -- --nocapture

# Proofs, fuzzing and lints need processors, real servers mostly wait for time to pass: the servers come first.
.PHONY: test-side-by-side
test-side-by-side:
	@log=$(TARGET)/proofs.log; nice -n 19 $(MAKE) test-proofs fuzz lint >$$log 2>&1 & proofs=$$!; \
	$(MAKE) test-cluster; cluster=$$?; \
	wait $$proofs; proven=$$?; cat $$log; exit $$((cluster | proven))

# Hostile bytes: the corpus, and for so long inputs made from it, the same at each run. Needs no tool.
FUZZ_SECONDS ?= 60
.PHONY: fuzz
fuzz:
	BIHA_FUZZ_SECONDS=$(FUZZ_SECONDS) $(CARGO) test --manifest-path fuzz/Cargo.toml -- --test-threads=1 --nocapture

# The same with coverage, for long runs. What it finds is kept in fuzz/found, crashes in fuzz/artifacts.
SOAK_SECONDS ?= 3600
FUZZ_TARGETS ?= frame channel statefile history magic
.PHONY: soak-fuzz
soak-fuzz:
	@command -v c++ >/dev/null || { echo 'libFuzzer needs a C++ compiler: apt-get install g++' >&2; exit 1; }
	cargo fuzz --version || $(CARGO) install cargo-fuzz --locked
	set -e; for target in $(FUZZ_TARGETS); do \
	    mkdir -p fuzz/found/$$target; \
	    RUSTC_BOOTSTRAP=1 cargo fuzz run --features libfuzzer $$target fuzz/found/$$target fuzz/corpus/$$target -- \
	        -max_total_time=$(SOAK_SECONDS) -max_len=8192 -malloc_limit_mb=64 -rss_limit_mb=1024 -timeout=20; \
	done

# Inside a server that the test runner makes.
.PHONY: test-server
test-server:
	rm -rf $(PGTESTDIR)
	$(CARGO) pgrx test $(RUNAS) --no-default-features $(PG)
	rm -rf $(PGTESTDIR)

# Half of what the cluster tests do otherwise is making and removing files. kill -9 leaves the page cache as it is, so
# that a disk would show no more; where power is lost, nodes have file systems of their own.
TESTDIR := $(or $(BIHA_TEST_DIR),$(shell [ "$$(df --output=avail /dev/shm 2>/dev/null | tail -1)" -ge 8000000 ] && echo /dev/shm),$(or $(TMPDIR),/tmp))

# Real servers. One profile for everything that is tested: nothing is built twice, overflow checks are on.
.PHONY: test-cluster
test-cluster:
	$(CARGO) pgrx install $(if $(SUDO),--sudo) --pg-config $(PG_CONFIG) $(FEATURES)
	$(CARGO) build $(CRATES) --bin bihactl
	BIHA_TEST_DIR=$(TESTDIR) $(CARGO) test $(CRATES) --test servers -- --test-threads=1 --nocapture $(or $(SCENARIO),--skip chaos::chaos_)

# Faults of every kind from a seed on real servers (`SEED=`, `FAULTS=`).
.PHONY: chaos
chaos:
	$(MAKE) test-cluster SCENARIO=chaos::chaos_

# Round after round of faults on real servers, seed after seed, for hours; ends with a report.
HOURS ?= 8
.PHONY: soak-chaos
soak-chaos: deps
	$(CARGO) pgrx install $(if $(SUDO),--sudo) --pg-config $(PG_CONFIG) $(FEATURES)
	$(CARGO) build $(CRATES) --bin bihactl --bin chaos
	BIHA_TEST_DIR=$(TESTDIR) $(TARGET)/debug/chaos --hours $(HOURS) $(if $(SEED),--seed $(SEED))

# A million simulated clusters, each twice, and a tenth of that where quorums change: an hour and a quarter on two cores.
# FIRST=1000000 takes the next million.
SEEDS ?= 1000000
FIRST ?= 0
SOAK_SIM = FIRST=$(FIRST) $(CARGO) test --profile soak -p biha-core --test faults -- --nocapture
.PHONY: soak-sim
soak-sim:
	SEEDS=$(SEEDS) $(SOAK_SIM) safety_under
	SEEDS=$$(($(SEEDS) / 10)) $(SOAK_SIM) safety_while safety_after

# One fault more than in `make check`, in every scenario of the model; MODEL_SECONDS at most for each.
MODEL_DEPTH   ?= 3
MODEL_SECONDS ?= 600
.PHONY: soak-model
soak-model:
	MODEL_DEPTH=$(MODEL_DEPTH) MODEL_SECONDS=$(MODEL_SECONDS) MODEL_THREADS=$(shell nproc) \
	    $(CARGO) test --profile soak -p biha-core --test model safety -- --test-threads=1 --nocapture

.PHONY: soak
soak: soak-model soak-sim soak-chaos

.PHONY: bench
bench: deps install
	$(CARGO) run --release -p biha-cluster-tests --bin bench -- $(BENCH)

.PHONY: demo
demo: deps install
	@$(CARGO) run --release -q -p biha-cluster-tests --bin demo

# Advisories, licences and banned crates (needs cargo-deny).
.PHONY: deny
deny:
	$(CARGO) deny check
