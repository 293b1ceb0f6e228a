# Everything a fresh machine needs is python3 (3.11 or newer, with venv) and make.
PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
OUT ?= out

BIN := $(abspath $(VENV))/bin
INSTALLED := $(VENV)/.installed
# Two test processes with two threads each would only get in each other's way.
ONE_THREAD := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1

.DEFAULT_GOAL := help
.PHONY: help demo test targets lab providers neon lint format types imports wheel check clean

help: ## say what there is to make
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(INSTALLED) ## export, validate and run the example in examples/tiny
	@$(BIN)/edgewright demo

test: $(INSTALLED) ## run all tests
	@$(ONE_THREAD) $(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

targets: $(INSTALLED) ## compile the kernels for every system and processor
	@EDGEWRIGHT_TARGETS=all $(ONE_THREAD) $(BIN)/python -m pytest tests/custom_ops/test_compiler.py $(ARGS)

lab: $(INSTALLED) ## run models of one op in every environment that can be installed (Debian; uses apt)
	@$(ONE_THREAD) $(BIN)/python -m lab.selftest --jobs $(JOBS) $(ARGS)

providers: $(INSTALLED) ## run five tiny models in all of them, against PyTorch
	@$(ONE_THREAD) $(BIN)/python -m lab.providers --jobs $(JOBS) $(ARGS)

neon: $(INSTALLED) ## sweep the kernels on an emulated arm64 (Debian; uses apt)
	@$(ONE_THREAD) $(BIN)/python -m lab.neon --jobs $(JOBS) $(ARGS)

lint: $(INSTALLED) ## check style and formatting
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check . || { echo "run: make format" >&2; exit 1; }

format: $(INSTALLED) ## put the formatting right
	@$(BIN)/ruff check --quiet --fix --select I . || true
	@$(BIN)/ruff format .

# mypy does not see which folder is which package, so it looks at a copy that is installed.
# setuptools leaves build/ behind, whose deleted modules would come back in later wheels.
types: $(INSTALLED) ## check types
	@rm -rf build $(OUT)/types
	@$(BIN)/pip install -qq --no-deps --target $(OUT)/types .
	@rm -rf build
	@cd $(OUT)/types && MYPYPATH=. $(BIN)/mypy --config-file $(CURDIR)/pyproject.toml \
	  --cache-dir $(CURDIR)/.mypy_cache --no-error-summary -p edgewright

imports: $(INSTALLED) ## check which room imports which
	@$(BIN)/lint-imports --no-cache > $(VENV)/imports.log 2>&1 || { cat $(VENV)/imports.log >&2; exit 1; }
	@tail -n 1 $(VENV)/imports.log

wheel: $(INSTALLED) ## build the wheel and the source archive, and check them
	@rm -rf build dist
	@$(BIN)/python -m build --outdir dist . > $(VENV)/build.log 2>&1 || { tail -n 30 $(VENV)/build.log >&2; exit 1; }
	@rm -rf build
	@$(BIN)/twine check --strict dist/* > $(VENV)/twine.log 2>&1 || { cat $(VENV)/twine.log >&2; exit 1; }
	@ls dist

check: lint types imports wheel test ## everything that has to hold

clean: ## remove what was made, but not the environment
	rm -rf build dist $(OUT) .mypy_cache .pytest_cache .ruff_cache *.egg-info

$(INSTALLED): pyproject.toml setup.py
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV): a minute or more"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --editable '.[dev]'
	@touch $@
