# Everything starts here: `make demo`, `make test`, `make lint`.
PYTHON ?= python3
PY := .venv/bin/python

.PHONY: env demo test lint types check bench constraints clean

env:
	@PYTHON="$(PYTHON)" sh tools/make_env.sh

demo: env
	@.venv/bin/nemo-mm-rank demo

test: env
	$(PY) -m pytest $(ARGS)

lint: env
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: env
	$(PY) -m mypy

check: lint types test

bench: env
	$(PY) -m benchmarks

# Needs `uv`; one file serves every supported Python and every extra.
constraints:
	uv pip compile --universal pyproject.toml --all-extras -p 3.11 --upgrade --no-annotate --no-header \
		--no-emit-index-url --no-emit-find-links -o constraints.txt

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache
