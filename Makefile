# The commands of the project, the same for everybody. ARGS goes to the bench: `make demo ARGS=--workers=1`.

CARGO := cargo
TARGET := $(or $(CARGO_TARGET_DIR),target)
BENCH := $(TARGET)/debug/bench
CARGO_DENY_VERSION := 0.20.2
CARGO_FUZZ_VERSION := 0.13.2

.PHONY: demo test test-all conformance fuzz bench dependencies image tools check format clippy unit quick-tests disk-tests docs deny advisories

## Shows one guest PVC reaching one pod. Needs root: namespaces, mounts, tap devices.
demo: bench
	$(BENCH) demo $(ARGS)

## Proves everything within half an hour: `make check`, then the end-to-end tests on the bench. Needs root, as the demo.
test: bench
	$(BENCH) test $(ARGS); status=$$?; \
	.ci/dependencies keep || echo "the compiled dependencies were not kept: the next clone compiles them"; \
	exit $$status

## The same, with what is long by nature: storms, churn, figures, resets, all rows of each matrix of faults, and a minute of each
## fuzz target.
test-all: bench
	$(BENCH) test --all $(ARGS)
	$(MAKE) fuzz SECONDS=60

## Feeds each decoder of bytes that others write with mutated ones, for SECONDS each. TARGETS chooses some: `make fuzz
## SECONDS=600 TARGETS="quantity ids"`. What was found is in fuzz/artifacts, with the command that repeats it.
#
# No sanitizer: our code has no `unsafe`, and without one the toolchain of rust-toolchain.toml is enough. A run begins with the
# committed inputs (fuzz/seeds) and those that earlier runs found (fuzz/corpus, which is not committed).
fuzz: SECONDS := 60
fuzz: TARGETS := $(shell sed -n 's/^name = "\(.*\)"/\1/p' fuzz/Cargo.toml | tail -n +2)
fuzz:
	@command -v cargo-fuzz >/dev/null || $(CARGO) install --locked cargo-fuzz@$(CARGO_FUZZ_VERSION)
	for target in $(TARGETS); do \
		mkdir -p fuzz/corpus/$$target && \
		$(CARGO) fuzz run --fuzz-dir fuzz --sanitizer none $$target fuzz/corpus/$$target fuzz/seeds/$$target -- \
			-max_total_time=$(SECONDS) -max_len=8192 -timeout=30 -rss_limit_mb=2048 -print_final_stats=1 || exit 1; \
	done

## Kubernetes' own tests of a CSI driver on the bench, with a table of what passed, failed and was skipped. Needs root, as the demo, and
## up to two hours. A regular expression chooses: `make conformance ARGS='"subPath should support"'`.
conformance: bench
	$(BENCH) conformance $(ARGS)

# One selection of packages and a test everywhere: cargo chooses the features of shared dependencies by the packages, and adds those
# of their tests where a test is built. Another selection would compile them, and all that uses them, once more.
bench: dependencies
	$(CARGO) build --locked --workspace --bins --test suite

# A fresh clone begins with the dependencies that an earlier one compiled.
dependencies:
	@.ci/dependencies restore || echo "no compiled dependencies were restored: they are compiled now"

## The images of the driver and of the cloud controller manager, docker-archives. Needs buildah, and apt for the packages (see
## deploy/image). REGISTRY and VERSION make their names.
image: IMAGE_DIR := $(TARGET)/image
image: REGISTRY := localhost
image: VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
image:
	$(CARGO) build --locked --release -p driver -p ccm
	rm -rf $(IMAGE_DIR) && mkdir -p $(IMAGE_DIR)
	deploy/image/packages.sh $(IMAGE_DIR)/packages
	for name in kubevirt-csi-driver kubevirt-cloud-controller-manager; do \
		deploy/image/root.sh $(IMAGE_DIR)/packages $(IMAGE_DIR)/$$name $$name && \
		VERSION=$(VERSION) REVISION=$$(git rev-parse HEAD) deploy/image/build.sh \
			$(IMAGE_DIR)/$$name $(IMAGE_DIR)/$$name.tar $(REGISTRY)/$$name:$(VERSION) $(TARGET)/release/$$name && \
		echo "$(REGISTRY)/$$name:$(VERSION): $$(du -h --apparent-size $(IMAGE_DIR)/$$name.tar | cut -f1) in $(IMAGE_DIR)/$$name.tar" \
			|| exit 1; \
	done

## The quick loop: format, clippy with warnings denied, unit and property tests, docs, licences.
check: tools format clippy unit docs deny

# Tests whose name ends in _needs_root use real loop devices, mkfs and mounts. They need root and some Debian packages.
ROOT := $(filter 0,$(shell id -u))

tools: $(if $(ROOT),bench)
	@$(if $(ROOT),$(BENCH) tools,echo "not root: the tests named _needs_root (loop devices, mkfs, mounts) are skipped")

format:
	$(CARGO) fmt --all --check
	$(CARGO) fmt --manifest-path fuzz/Cargo.toml --check

clippy:
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	$(CARGO) clippy --locked --workspace --test suite -- -D warnings

# They wait for disks as long as all others take, so they run beside them.
unit:
	$(CARGO) test --locked --workspace --no-run
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target quick-tests $(if $(ROOT),disk-tests)

quick-tests:
	$(CARGO) test --locked --workspace -- --skip needs_root

disk-tests:
	$(CARGO) test --locked --workspace --tests needs_root

docs:
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps --workspace

# The advisory database can't be fetched everywhere; licences, bans and sources are checked always. All crates of the lock
# file are needed for that, other platforms' too.
deny:
	@command -v cargo-deny >/dev/null || $(CARGO) install --locked --debug cargo-deny@$(CARGO_DENY_VERSION)
	$(CARGO) fetch --locked --quiet
	$(CARGO) deny --offline check bans licenses sources
	$(CARGO) fetch --locked --quiet --manifest-path fuzz/Cargo.toml
	$(CARGO) deny --offline --manifest-path fuzz/Cargo.toml check bans licenses sources

## Checks the dependencies against the RustSec database, which it fetches. Not a part of `make check`, which needs no network.
advisories:
	@command -v cargo-deny >/dev/null || $(CARGO) install --locked --debug cargo-deny@$(CARGO_DENY_VERSION)
	$(CARGO) deny check advisories
	$(CARGO) deny --manifest-path fuzz/Cargo.toml check advisories
