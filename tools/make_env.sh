#!/bin/sh
# Makes a thin virtual environment with this checkout in it, on top of the dependencies.
#
#   make_env.sh             .venv, for everything
#   make_env.sh curator09   .venv-curator09, for NeMo Curator 0.9, which cannot share one with 1.x
#   make_env.sh readers     .venv-readers, for trainers' data loaders, on top of what .venv stands on
#   make_env.sh audio       .venv-audio, for Curator's audio extra, which wants an older transformers and torch
#
# The dependencies weigh several gigabytes, so they live once per user, in the cache folder, under a digest
# of what they are made from. A change of what pyproject.toml requires, of the constraints or of Python makes
# a new one and removes the old ones of its kind first, because the disk may not hold two.
set -eu

cd "$(dirname "$0")/.."
python=${PYTHON:-python3} over=
case "${1:-}" in
    "")
        venv=.venv kind=env constraints=constraints.txt pythons="3.11 3.12 3.13" tools="ruff ray lint-imports uv"
        requirements() { "$python" tools/requirements.py "dask,curator,models,report,s3,dev,docs"; }
        bare() { cat tools/bare.in; }
        ;;
    curator09)
        venv=.venv-curator09 kind=legacy constraints=constraints-curator09.txt pythons=3.11 tools=""
        requirements() { "$python" tools/requirements.py ""; cat tools/curator09.in; }
        bare() { :; }
        ;;
    audio)
        venv=.venv-audio kind=audio constraints=constraints-audio.txt pythons=3.11 tools="ray"
        requirements() { "$python" tools/requirements.py "dask,curator,models,report,s3,dev"; cat tools/audio.in; }
        bare() { cat tools/bare.in; }
        ;;
    readers)  # only what differs from .venv, or is not there
        venv=.venv-readers kind=readers constraints=tools/readers.in pythons="3.11 3.12 3.13" tools=""
        over=.venv
        requirements() { :; }
        bare() { cat "$constraints"; }
        ;;
    *) echo "make_env.sh: no environment '$1'; there are the default one, curator09, audio, readers" >&2; exit 2 ;;
esac

version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
case " $pythons " in
    *" $version "*) ;;
    *) echo "$venv needs Python $pythons; $python is $version. Try: make PYTHON=python3.11 ..." >&2; exit 1 ;;
esac
digest=$({ "$python" -c 'import sys; print(sys.version, sys.prefix)'; requirements; bare; cat "$constraints"; } \
    | sha256sum | cut -c1-16)
cache="${XDG_CACHE_HOME:-$HOME/.cache}/nemo-mm-rank"
deps="$cache/$kind-$digest"

mkdir -p "$cache"
exec 9>"$cache/lock-$kind"
command -v flock >/dev/null && flock 9

if [ ! -e "$deps/complete" ]; then
    echo "Installing the dependencies (several GB, some minutes) ..."
    rm -rf "$cache/$kind"-*
    "$python" -m venv "$deps"
    requirements >"$deps/requirements.txt"
    bare >"$deps/bare.txt"
    # uv installs in a third of pip's time.
    "$deps/bin/python" -m pip install --quiet --quiet --no-cache-dir --upgrade "pip>=25" "uv>=0.5"
    install() { "$deps/bin/python" -m uv pip install --quiet --no-config --no-cache --python "$deps/bin/python" "$@"; }
    [ ! -s "$deps/requirements.txt" ] || install -c "$constraints" -r "$deps/requirements.txt"
    [ ! -s "$deps/bare.txt" ] || install --no-deps -r "$deps/bare.txt"
    touch "$deps/complete"
fi

project=$({ echo "$digest"; cat pyproject.toml; } | sha256sum)
if [ ! -x "$venv/bin/python" ] || [ "$(cat "$venv/digest" 2>/dev/null)" != "$project" ]; then
    rm -rf "$venv"
    "$python" -m venv --without-pip "$venv"
    site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    below=$("$deps/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    echo "import site; site.addsitedir('$below')" >"$site/dependencies.pth"
    # What they lack is found behind them.
    [ -z "$over" ] || cat "$over"/lib/python*/site-packages/dependencies.pth >>"$site/dependencies.pth"
    "$deps/bin/python" -m pip --python "$venv/bin/python" install --quiet --no-deps --no-build-isolation -e .
    for tool in $tools; do ln -sf "$deps/bin/$tool" "$venv/bin/"; done
    echo "$project" >"$venv/digest"
fi
