# make train | test | lint | docs | lock | clean.   JAX=cuda13 or JAX=tpu adds that backend, at the locked version;
# VENV=DIR is the environment, PYTHON=python3.12 the interpreter it is made with, ARGS=... goes to the program.

VENV ?= .venv
JAX ?=
ARGS ?=

# What an interpreter must pass: new enough, and able to make an environment.
USABLE := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	"$$p" -c '$(USABLE)' >/dev/null 2>&1 && echo "$$p" && break; done)

BIN := $(VENV)/bin
# Where this is set, every start compiles the sources of JAX anew: seconds each.
export PYTHONDONTWRITEBYTECODE =
# The lock is complete, so pip need not resolve; Python compiles what is imported, not all of it.
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-compile
MAIN := $(VENV)/.installed$(if $(JAX),-$(JAX))
TEST := $(VENV)/.installed-test
DOCS := $(VENV)/.installed-docs
FOLDERS := vae_jax tests configs benchmarks
# The project's files: others in the same folder are the user's own.
SOURCES = $(or $(shell git ls-files '*.py' 2>/dev/null),$(FOLDERS) train.py eval.py benchmark.py)
# glibc asks for huge pages: a CPU's large temporaries cost a third of a step without (cli.huge_pages).
TUNABLES := $(if $(GLIBC_TUNABLES),$(GLIBC_TUNABLES):)glibc.malloc.hugetlb=1

.PHONY: train test lint docs lock clean
.DEFAULT_GOAL := train

train: $(MAIN)
	GLIBC_TUNABLES=$(TUNABLES) $(BIN)/python train.py --config=configs/digits.py --workdir=runs/digits $(ARGS)

test: lint $(MAIN)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(TEST)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)

# Every page, with warnings as errors: build/docs/index.html.
docs: $(DOCS)
	JAX_PLATFORMS=cpu $(BIN)/python -m sphinx -W --keep-going -q docs build/docs

# A stamp is written last: an interrupted install has none and is made again from nothing. Only an
# environment that was made here (.vae_jax) is ever removed.
$(VENV)/.installed: requirements.lock
	@"$(PYTHON)" -c '$(USABLE)' >/dev/null 2>&1 || { echo "PYTHON=$(PYTHON): want Python >= 3.11 with venv (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@test ! -e "$(VENV)" || test -e "$(VENV)/.vae_jax" || { echo "VENV=$(VENV): exists and was not made by make; move it away or name another" >&2; exit 1; }
	@echo "Making $(VENV) from requirements.lock (once; about a minute)"
	@rm -rf "$(VENV)" && mkdir -p "$(VENV)" && touch "$(VENV)/.vae_jax"
	@"$(PYTHON)" -m venv "$(VENV)"
	@$(PIP) --no-deps -r requirements.lock
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed requirements-test.lock
	@$(PIP) --no-deps -r requirements-test.lock
	@touch $@

$(DOCS): $(VENV)/.installed docs/requirements.lock
	@$(PIP) --no-deps -r docs/requirements.lock
	@touch $@

ifneq ($(JAX),)
$(MAIN): $(VENV)/.installed
	@echo "Adding jax[$(JAX)]"
	@$(PIP) --constraint requirements.lock "jax[$(JAX)]"
	@touch $@
endif

# For maintainers (needs uv): resolve requirements.txt and the test extra anew, for every Python and platform at once.
LOCK := uv pip compile --quiet --universal --python-version 3.11 --no-annotate --no-header
lock:
	$(LOCK) requirements.txt > requirements.lock.new
	mv requirements.lock.new requirements.lock
	$(LOCK) -c requirements.lock --extra test pyproject.toml | grep -vxFf requirements.lock > requirements-test.lock
	$(LOCK) -c requirements.lock --extra docs pyproject.toml | grep -vxFf requirements.lock > docs/requirements.lock

# Leaves runs/ alone.
clean:
	rm -rf .pytest_cache .ruff_cache .hypothesis build docs/generated *.egg-info
	find $(FOLDERS) -name __pycache__ -type d -prune -exec rm -rf {} +
	if test -e "$(VENV)/.vae_jax"; then rm -rf "$(VENV)"; fi
