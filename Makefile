# Every target makes its own virtual environment, .venv, on first use.
# On another interpreter: make demo PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
# More arguments for pytest: make test ARGS="-k cleanup"
ARGS ?=
# Processes that share the test files; 0 runs them one by one in this one.
WORKERS ?= 2
SHARED := -n $(WORKERS) --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint bench bench-quantization bench-factorization bench-runtimes clean

help: ## Show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' \
		$(MAKEFILE_LIST)

demo: $(READY) ## Train, compress and measure a small model, and write its report
	@$(BIN)/python examples/demo/digits.py
	@$(BIN)/edgecompress build examples/demo/recipe.toml

test: $(READY) ## Run the tests, without the slow ones
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest $(SHARED) -m "not slow" $(ARGS)

test-all: $(READY) ## Run all tests
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest $(SHARED) $(ARGS)

lint: $(READY) ## Check style, types and who imports whom
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

bench: $(READY) ## Measure the figures in benchmarks/
	@$(BIN)/python benchmarks/run.py

# The peers are installed below .benchmark-peers on first use. More arguments:
# make bench-quantization ARGS="--models resnet20 --entries 'edgecompress*'"
bench-quantization: $(READY) ## Compare with all other quantizers
	@PYTHONPATH=benchmarks $(BIN)/python -m quantization --write docs/quantization.md $(ARGS)

# Parts are kept and merged. More arguments:
# make bench-factorization ARGS="--only ablation,time --models minilm --readme"
bench-factorization: $(READY) ## Compare with plain SVD and SVD-LLM
	@PYTHONPATH=benchmarks $(BIN)/python -m factorization --write docs/factorization.md $(ARGS)

# Node and Chromium bring the browser's row, RKNN (an environment of its own) its simulator:
# make bench-runtimes ARGS="--models MiniLM --targets openvino-cpu"
bench-runtimes: $(READY) ## Give MobileNet and MiniLM to every runtime here
	@$(BIN)/python benchmarks/runtimes.py --write docs/targets.md --readme $(ARGS)

clean: ## Remove build outputs and caches; .venv stays
	@rm -rf build dist out demo-output .edgecompress *.egg-info .coverage \
		.mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -path ./$(VENV) -prune -o -type d -name __pycache__ -exec rm -rf {} +

# The stamp is newer than both files only after an installation that went through.
# constraints.txt pins torch: an open range pulls gigabytes of GPU libraries.
$(READY): pyproject.toml constraints.txt
	@command -v "$(PYTHON)" >/dev/null || { \
		echo "edgecompress needs Python 3.11 or newer, and there is no '$(PYTHON)'." >&2; \
		echo "  -> install it, or name another: make PYTHON=/path/to/python3.11 ..." >&2; \
		exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "edgecompress needs Python 3.11 or newer; '$(PYTHON)' is" \
			"`"$(PYTHON)" --version 2>&1`." >&2; \
		echo "  -> name a newer one: make PYTHON=python3.12 ..." >&2; \
		exit 1; }
	@echo "Installing into $(VENV): a few minutes the first time, mostly torch ..."
	@test -x $(BIN)/pip || "$(PYTHON)" -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		-c constraints.txt -e ".[dev,demo,images,yaml,runtimes]"
	@touch $@
