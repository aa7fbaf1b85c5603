#!/bin/sh
# Makes .venv: a thin virtual environment with this checkout in it, on top of the dependencies.
#
# The dependencies weigh several gigabytes, so they live once per user, in the cache folder, under a digest
# of what they are made from. A change of what pyproject.toml requires, of constraints.txt or of Python makes
# a new one and removes the old ones first, because the disk may not hold two.
set -eu

cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
extras="dask,curator,models,report,dev"

version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
case "$version" in
    3.11 | 3.12 | 3.13) ;;
    *) echo "nemo-mm-rank needs Python 3.11 to 3.13; $python is $version. Try: make PYTHON=python3.12" >&2; exit 1 ;;
esac
digest=$({ "$python" -c 'import sys; print(sys.version, sys.prefix)'; "$python" tools/requirements.py "$extras"; cat constraints.txt; } \
    | sha256sum | cut -c1-16)
cache="${XDG_CACHE_HOME:-$HOME/.cache}/nemo-mm-rank"
deps="$cache/env-$digest"

mkdir -p "$cache"
exec 9>"$cache/lock"
command -v flock >/dev/null && flock 9

if [ ! -e "$deps/complete" ]; then
    echo "Installing the dependencies (several GB, some minutes) ..."
    rm -rf "$cache"/env-*
    "$python" -m venv "$deps"
    "$python" tools/requirements.py "$extras" >"$deps/requirements.txt"
    "$deps/bin/python" -m pip install --quiet --quiet --no-cache-dir --upgrade "pip>=25"
    "$deps/bin/python" -m pip install --quiet --quiet --no-cache-dir -c constraints.txt -r "$deps/requirements.txt"
    touch "$deps/complete"
fi

project=$({ echo "$digest"; cat pyproject.toml; } | sha256sum)
if [ ! -x .venv/bin/nemo-mm-rank ] || [ "$(cat .venv/digest 2>/dev/null)" != "$project" ]; then
    rm -rf .venv
    "$python" -m venv --without-pip .venv
    site=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    below=$("$deps/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    echo "import site; site.addsitedir('$below')" >"$site/dependencies.pth"
    "$deps/bin/python" -m pip --python .venv/bin/python install --quiet --no-deps --no-build-isolation -e .
    ln -sf "$deps/bin/ruff" "$deps/bin/ray" .venv/bin/
    echo "$project" >.venv/digest
fi
