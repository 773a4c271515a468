# The commands of the project, the same for everybody. ARGS goes to the bench: `make demo ARGS=--workers=1`.

CARGO := cargo
TARGET := $(or $(CARGO_TARGET_DIR),target)
BENCH := $(TARGET)/debug/bench
CARGO_DENY_VERSION := 0.20.2

.PHONY: demo test test-all conformance bench dependencies image tools check format clippy unit docs deny

## Shows one guest PVC reaching one pod. Needs root: namespaces, mounts, tap devices.
demo: bench
	$(BENCH) demo $(ARGS)

## Proves everything within half an hour: `make check`, then the end-to-end tests on the bench. Needs root, as the demo.
test: bench
	$(BENCH) test $(ARGS); status=$$?; \
	.ci/dependencies keep || echo "the compiled dependencies were not kept: the next clone compiles them"; \
	exit $$status

## The same, with what is long by nature: storms, churn, figures, resets, and all rows of each matrix of faults.
test-all: bench
	$(BENCH) test --all $(ARGS)

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

clippy:
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	$(CARGO) clippy --locked --workspace --test suite -- -D warnings

unit:
	$(CARGO) test --locked --workspace $(if $(ROOT),,-- --skip needs_root)

docs:
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps --workspace

# The advisory database can't be fetched everywhere; licences, bans and sources are checked always. All crates of the lock
# file are needed for that, other platforms' too.
deny:
	@command -v cargo-deny >/dev/null || $(CARGO) install --locked --debug cargo-deny@$(CARGO_DENY_VERSION)
	$(CARGO) fetch --locked --quiet
	$(CARGO) deny --offline check bans licenses sources
