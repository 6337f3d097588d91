# Everything starts from Python alone: `make up` to run it, `make test` to test it.
# Tests start many processes: what one has compiled the next one reads.
unexport PYTHONDONTWRITEBYTECODE

# The newest supported Python that runs here; a name that only points at one which is not installed does not count.
PYTHON ?= $(shell for v in 3.13 3.12 3.11; do python$$v -c "import ensurepip" 2>/dev/null && echo python$$v && break; done)
BIN := .venv/bin
READY := .venv/.ready
BEGUN := .venv/.begun

.PHONY: pictures setup up test tests test-fast check bench lock supply
setup: $(READY)

# The lock names every package with its hash, dependencies included, so nothing needs resolving. pip brings uv, and uv the
# rest, ten times as fast; pip brings that too where uv finds no way out, for it alone reads pip's own settings of mirrors.
# What was broken off is begun anew: a package of which half is written counts as installed ever after.
LOCKED = --quiet --no-deps --require-hashes -r
NO_PYTHON = Python 3.11, 3.12 or 3.13 is needed, with venv
ifdef SETTING_UP
$(READY): requirements.lock pyproject.toml
	test ! -e $(BEGUN) || rm -rf .venv
	@test -x $(BIN)/python || test -n "$(PYTHON)" || { echo "$(NO_PYTHON)" >&2; exit 1; }
	mkdir -p .venv && touch $(BEGUN)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	sed -n '/^uv==/,/[^\\]$$/p' requirements.lock >.venv/uv.lock
	$(BIN)/python -m pip install --disable-pip-version-check $(LOCKED) .venv/uv.lock
	$(BIN)/uv pip install --python $(BIN)/python $(LOCKED) requirements.lock \
		|| $(BIN)/python -m pip install --disable-pip-version-check $(LOCKED) requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	mv $(BEGUN) $(READY)
else
# One at a time in a folder: who comes second would take what is under way for broken off. It finds it done.
$(READY): requirements.lock pyproject.toml
	@test -x $(BIN)/python || test -n "$(PYTHON)" || { echo "$(NO_PYTHON)" >&2; exit 1; }
	@$(or $(PYTHON),$(BIN)/python) -c "$$IN_TURN" $(MAKE) --no-print-directory SETTING_UP=1 $(READY)
endif

define IN_TURN
import fcntl, os, sys
held = os.open("Makefile", os.O_RDONLY)
try:
    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("This folder is being set up already; waiting for that", flush=True)
    fcntl.flock(held, fcntl.LOCK_EX)
os.set_inheritable(held, True)
os.execvp(sys.argv[1], sys.argv[1:])
endef
export IN_TURN

up: setup
	$(BIN)/polydesk up

test: check tests

tests: setup
	$(BIN)/python -m pytest -n auto

# Everything that is not marked slow: for between two edits.
test-fast: setup
	$(BIN)/python -m pytest -n auto -m "not slow"

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check

bench: setup
	$(BIN)/python -m benchmarks

# Rewrites the locks from pyproject.toml: names, versions and hashes, no addresses; the second of them leaves out what only
# developers need.
COMPILE = $(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate --no-header --quiet
lock: setup
	$(COMPILE) --group dev -o requirements.lock
	$(COMPILE) --extra apprise --extra mcp -c requirements.lock -o deploy/requirements.lock

# Pictures of every page, in three languages and two widths; LINK is the one that `make up` prints.
pictures: setup
	$(BIN)/python -m tests.web.pictures "$(LINK)"

# What this is made of (CycloneDX, from what is installed), whether it may be used, and what is known against it; the
# tools come from the package registry, which may tell no advisories: that is said, and fails nothing.
supply: setup
	mkdir -p dist
	$(BIN)/uv tool run --from cyclonedx-bom cyclonedx-py environment --pyproject pyproject.toml --output-reproducible -o dist/sbom.cdx.json $(BIN)/python
	$(BIN)/python -m pytest -q -p no:cacheprovider tests/house/test_supply.py
	@echo "Bill of materials: dist/sbom.cdx.json. Licences: looked at, all of them allowed."
	rm -f dist/advisories.json
	@$(BIN)/uv tool run pip-audit --progress-spinner off --require-hashes --disable-pip --format json -o dist/advisories.json -r requirements.lock >/dev/null 2>&1 || true
	$(BIN)/python -m tests.house.advisories dist/advisories.json requirements.lock
