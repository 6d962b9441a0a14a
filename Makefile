# Argosy. `make quickstart` shows it at work; `make test` checks it.  Both make .venv on their first run.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check
REPORTS := build/reports
QUICKSTART_TAR := build/quickstart.tar
QUICKSTART_MIN := 2097152
# The same tree gives the same bytes, hence the same hash.
TAR_SAME := --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --format=gnu
# More words for pytest, for instance: make test PYTEST_ARGS='tests/hmx -x'
PYTEST_ARGS ?=

# Scripts in a virtual environment name its path, so one that was copied or moved is made again.
STAMP := $(VENV)/.installed
MADE_IN := $(VENV)/.made-in
ifneq ($(shell cat $(MADE_IN) 2>/dev/null),$(CURDIR))
$(STAMP): FORCE
endif

.PHONY: help setup quickstart quickstart-tar test test-virtio test-hosts test-long fuzz bench bench-check mutate docs lint clean FORCE

help:
	@echo 'make quickstart   build .venv, then send a real file from one guest to another'
	@echo 'make test         ruff, mypy --strict, pytest (under 10 minutes on 2 cores)'
	@echo 'make test-virtio  labs with VirtIO devices; drivers against the devices of QEMU (Debian: qemu-system-arm)'
	@echo 'make test-hosts   labs over several hosts: network namespaces, a real sshd in each (as root)'
	@echo 'make test-long    the gigabyte and soak tests'
	@echo 'make fuzz         hostile bytes for every parser, about a minute (FUZZ_SECONDS=2 for each of them and each engine)'
	@echo 'make mutate       flip every cell of every table, one at a time: a test must fail'
	@echo 'make bench        Argo next to its peers, as ratios (argosy bench)'
	@echo 'make bench-check  the same, held against the targets, best of three'
	@echo 'make setup | lint | docs | clean'

setup: $(STAMP)

$(STAMP): pyproject.toml
	@command -v $(PYTHON) >/dev/null || { \
	  echo 'setup: $(PYTHON) is missing. Install it: apt-get install -y python3 python3-venv' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo 'setup: Python 3.11 or later is needed, $(PYTHON) is' \
	    "$$($(PYTHON) -c 'import platform; print(platform.python_version())')." \
	    'Install one (apt-get install -y python3 python3-venv) and name it: make setup PYTHON=python3.11' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo 'setup: the venv module is missing. Install it: apt-get install -y python3-venv' >&2; exit 1; }
	@echo 'setup: installing into $(VENV) (about half a minute)'
	@$(BIN)/python -c '' 2>/dev/null && test "$$(cat $(MADE_IN) 2>/dev/null)" = '$(CURDIR)' || { \
	  $(PYTHON) -m venv --clear $(VENV) && printf '%s\n' '$(CURDIR)' >$(MADE_IN); }
	@$(BIN)/python -c 'import hatchling, editables' 2>/dev/null || $(PIP) install hatchling editables
	@$(PIP) install --no-build-isolation -e '.[dev]'
	@touch $(STAMP)

# A real file to send: everything that is tracked, or the whole tree where there is no repository.
quickstart-tar:
	@mkdir -p build
	@if test -n "$$(git ls-files 2>/dev/null | head -n 1)"; then \
	  git ls-files -z | xargs -0 sh -c 'for f; do test ! -e "$$f" || printf "%s\0" "$$f"; done' sh \
	    | tar -cf $(QUICKSTART_TAR) $(TAR_SAME) --no-recursion --null -T -; \
	else \
	  tar -cf $(QUICKSTART_TAR) $(TAR_SAME) --exclude=./.git --exclude=./.venv --exclude=./build --exclude=__pycache__ \
	    --exclude='./.*_cache' --exclude=./.hypothesis .; \
	fi
	@size=$$(wc -c <$(QUICKSTART_TAR)); echo "$(QUICKSTART_TAR): $$size bytes"; \
	if test "$$size" -lt $(QUICKSTART_MIN); then \
	  echo "quickstart: $(QUICKSTART_TAR) has $$size bytes, fewer than the $(QUICKSTART_MIN) that the demonstration" \
	    'sends: is this the complete source tree?' >&2; exit 1; fi

quickstart: setup quickstart-tar
	@$(BIN)/argosy run topologies/library/quickstart.yaml

lint: setup
	$(BIN)/ruff check .
	$(BIN)/mypy --strict

test: lint
	@mkdir -p $(REPORTS)
ifeq ($(strip $(PYTEST_ARGS)),)
	$(BIN)/python -m pytest -n 2 --dist loadfile --ignore=tests/e2e --ignore=tests/virtio_qemu --junitxml=$(REPORTS)/test-units.xml \
	  --skip-report=$(REPORTS)/test-units.skips
	$(BIN)/python -m pytest tests/e2e $(addprefix --ignore=,$(VIRTIO_TESTS)) --junitxml=$(REPORTS)/test.xml --skip-report=$(REPORTS)/test.skips
else
	$(BIN)/python -m pytest --junitxml=$(REPORTS)/test.xml --skip-report=$(REPORTS)/test.skips $(PYTEST_ARGS)
endif

# Labs with VirtIO devices, and the driver's side against QEMU's own devices.
VIRTIO_TESTS := tests/virtio_qemu tests/e2e/test_virtio.py tests/e2e/test_virtio_doors.py tests/e2e/test_compare.py \
  tests/e2e/test_storage_torture.py
test-virtio: setup
	@mkdir -p $(REPORTS)
	$(BIN)/python -m pytest -n 2 --dist loadfile $(VIRTIO_TESTS) --junitxml=$(REPORTS)/test-virtio.xml \
	  --skip-report=$(REPORTS)/test-virtio.skips $(PYTEST_ARGS)

test-hosts: setup quickstart-tar
	@mkdir -p $(REPORTS)
	$(BIN)/python -m pytest -m hosts tests/hosts -n 2 --dist loadfile --junitxml=$(REPORTS)/test-hosts.xml \
	  --skip-report=$(REPORTS)/test-hosts.skips $(PYTEST_ARGS)

test-long: setup
	@mkdir -p $(REPORTS)
	$(BIN)/python -m pytest -m long -n 2 --dist worksteal --junitxml=$(REPORTS)/test-long.xml \
	  --skip-report=$(REPORTS)/test-long.skips $(PYTEST_ARGS)

# Guided by coverage too where atheris installs (it has wheels for some Pythons only); else the seeded engine alone.
FUZZ_SECONDS ?= 2
fuzz: setup
	@$(BIN)/python -c 'import atheris' 2>/dev/null || $(PIP) install --only-binary :all: 'atheris>=2.3' || \
	  echo 'fuzz: atheris does not install on this Python' >&2
	$(BIN)/python -m tests.fuzz all --seconds $(FUZZ_SECONDS)

mutate: setup
	@mkdir -p $(REPORTS)
	$(BIN)/python -m tests.mutate --report=$(REPORTS)/mutate.txt

# docs/tables.md, and the tables of doors.md and interrupts.md, are written from the code's, and that of comparison.md from what is counted; tests compare.
docs: setup
	$(BIN)/python docs/generate.py
	$(BIN)/python docs/comparison.py

# Figures mean something on a machine that does nothing else.
bench: setup
	@$(BIN)/argosy bench

bench-check: setup
	@$(BIN)/python -m topologies.bench.targets

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
