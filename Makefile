# Everything starts here: `make demo`, `make test`, `make lint`.
PYTHON ?= python3
PY := .venv/bin/python
JOBS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); [ $$n -gt 4 ] && n=4; echo $$n)

.PHONY: env demo test fast test-curator09 test-readers test-audio lint types docs check bench constraints resolve clean

env:
	@PYTHON="$(PYTHON)" sh tools/make_env.sh

demo: env
	@.venv/bin/nemo-mm-rank demo

# One thread a process: several processes that each take all cores are slower than one after the other.
test: env
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(JOBS) --dist loadfile $(ARGS)

# What takes no cluster, browser or long time.
fast: env
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(JOBS) --dist loadfile -m "not slow and not gpu" --ignore tests/integration \
		--ignore tests/adapt --ignore tests/benchmark --ignore tests/curator --ignore tests/engine --ignore tests/report \
		--ignore tests/run $(ARGS)

# In an environment of its own: Curator 0.9 cannot share one with 1.x.
test-curator09:
	@PYTHON="$(PYTHON)" sh tools/make_env.sh curator09
	.venv-curator09/bin/python -m pytest tests/legacy $(ARGS)

# What trainers' own data loaders yield of our exports, in an environment of their own as well.
test-readers: env
	@PYTHON="$(PYTHON)" sh tools/make_env.sh readers
	HF_HUB_OFFLINE=1 DISABLE_VERSION_CHECK=1 .venv-readers/bin/python -m pytest tests/readers $(ARGS)

# Beside Curator's audio extra, which takes transformers 4 and torch 2.8: models and stages in an environment of their own.
test-audio:
	@PYTHON="$(PYTHON)" sh tools/make_env.sh audio
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 .venv-audio/bin/python -m pytest -n $(JOBS) --dist loadfile \
		tests/models tests/curator $(ARGS)

lint: env
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	.venv/bin/lint-imports --no-cache

types: env
	$(PY) -m mypy

# The documentation as pages to read, in site/; warnings are errors, and nothing is fetched.
docs: env
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --quiet --strict

check: lint types docs test

bench: env
	$(PY) -m benchmarks

# Needs `uv`; one file serves every supported Python and every extra, one Curator 0.9 and one its audio extra (without the settings for uv
# in pyproject.toml, which are about the newest torch).
COMPILE := uv pip compile --universal -p 3.11 --upgrade --no-annotate --no-header --no-emit-index-url --no-emit-find-links
constraints:
	$(COMPILE) pyproject.toml $(foreach extra,dask curator models gpu report s3 dev docs,--extra $(extra)) -o constraints.txt
	$(COMPILE) --no-config pyproject.toml tools/curator09.in -o constraints-curator09.txt
	$(COMPILE) --no-config pyproject.toml tools/audio.in $(foreach extra,dask curator models report s3 dev,--extra $(extra)) \
		-o constraints-audio.txt

# Whether what we ask for can be installed at once: all extras, and beside Curator's own. Nothing is installed.
resolve: env
	PATH="$(CURDIR)/.venv/bin:$$PATH" $(PY) tools/resolve.py $(ARGS)

clean:
	rm -rf .venv .venv-curator09 .venv-readers .venv-audio .mypy_cache .ruff_cache .pytest_cache site
