# Two commands do all the set-up on a fresh Debian or Ubuntu machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SUDO := $(shell [ "$$(id -u)" = 0 ] || command -v sudo)
DEMO_OUT ?= demo-case

# What the demo needs, and what the tests need on top of it.
DEMO_PACKAGES := qemu-utils e2fsprogs fdisk python3-venv python3-dev gcc
TEST_PACKAGES := $(DEMO_PACKAGES) xfsprogs btrfs-progs ntfs-3g dosfstools exfatprogs exfat-fuse mtools sleuthkit gdisk \
	cryptsetup-bin lvm2 xz-utils valgrind testdisk
# Makers of guests that some archives lack: the tests that need them are skipped then, and say so.
RARE := makefs apfsprogs
# What the benches compare with; whatever the machine's archive does not have is "not measured" in the table.
PEERS := testdisk scalpel foremost ripgrep
BENCH_OUT ?= bench-out.json
SOURCES := setup.py pyproject.toml $(wildcard ext/*)

.PHONY: demo test lint bench bench-report bench-recall bench-gate clean build packages-demo packages-test packages-bench

build: $(VENV)/.built

$(VENV)/.made:
	$(PYTHON) -m venv $(VENV) || { $(MAKE) packages-demo && $(PYTHON) -m venv $(VENV); }
	$(BIN)/python -m pip install -q --upgrade pip
	touch $@

$(VENV)/.built: $(VENV)/.made $(SOURCES)
	$(BIN)/python -m pip install -q -e .
	touch $@

# $(call extra,name): what an extra of pyproject.toml lists; "pip install -e .[name]" would build the kernels again
define extra
	$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["$(1)"], sep="\n")' > $(VENV)/$(1).txt
	$(BIN)/python -m pip install -q -r $(VENV)/$(1).txt
endef

$(VENV)/.test: $(VENV)/.built
	$(call extra,test)
	touch $@

$(VENV)/.lint: $(VENV)/.built
	$(call extra,lint)
	touch $@

# $(call install,packages): only what is not installed yet; as root or through sudo
define install
	@missing=""; for p in $(1); do dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then echo "installing$$missing"; $(SUDO) apt-get update -qq && \
	DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get install -y -qq --no-install-recommends $$missing >/dev/null; fi
endef

packages-demo:
	$(call install,$(DEMO_PACKAGES))

# $(call try,packages,what follows where one is not to be had)
define try
	@for p in $(1); do dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || \
	DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get install -y -qq --no-install-recommends $$p >/dev/null 2>&1 || \
	echo "$$p cannot be installed here: $(2)"; done
endef

packages-test:
	$(call install,$(TEST_PACKAGES))
	$(call try,$(RARE),its tests are skipped)

packages-bench: packages-test
	$(call try,$(PEERS),the table says so)

demo: packages-demo build
	rm -rf $(DEMO_OUT)
	$(BIN)/vmcarve demo --out $(DEMO_OUT)

test: packages-test build $(VENV)/.test
	$(BIN)/python -m pytest -q -n logical --dist worksteal $(PYTEST_ARGS)

lint: build $(VENV)/.lint
	$(BIN)/ruff check .
	PATH="$(BIN):$$PATH" $(BIN)/cython-lint ext
	$(BIN)/pyright --pythonpath $(BIN)/python

# One table, bench-out.json (pytest-benchmark's, with the table in it), bench-summary.json (flat, for a CI), the plots.
# PYTEST_ARGS="-k noise" runs a part; VMCARVE_BENCH_MIB and others (docs/performance.md) set the sizes.
bench: packages-bench build $(VENV)/.test
	$(BIN)/python -m pytest -q benches --benchmark-only --benchmark-json=$(BENCH_OUT) $(PYTEST_ARGS)
	$(BIN)/python -m benches.report $(BENCH_OUT) --plots docs/plots --summary $(BENCH_OUT:.json=)-summary.json

# Puts the table of the last run into docs/performance.md.
bench-report:
	$(BIN)/python -m benches.report $(BENCH_OUT) --write docs/performance.md

# Takes some hours and some GiB below TMPDIR; docs/results.md is its output. RECALL_ARGS=--quick takes minutes.
bench-recall: packages-test build $(VENV)/.test
	$(BIN)/python -m benches.recall --seeds $(or $(SEEDS),11 12 13 14 15) --write $(or $(RESULTS),docs/results.md) \
		$(RECALL_ARGS)

bench-gate: packages-test build $(VENV)/.test
	$(BIN)/python -m benches.gate

clean:
	rm -rf build $(VENV) $(DEMO_OUT) src/vmcarve/_ext/*.so *.egg-info src/*.egg-info
