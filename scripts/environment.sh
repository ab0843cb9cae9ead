#!/bin/sh
# usage: scripts/environment.sh [EXTRA]
#
# Make a virtual environment with this checkout installed in it, as splitattn or splitattn[EXTRA],
# and print the path of its Python. The environment is .venv in the checkout, or where
# SPLITATTN_VENV says. Nothing is installed again until pyproject.toml changes.
set -eu

extra=${1:-}
package=.${extra:+[$extra]}
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
venv=${SPLITATTN_VENV:-$root/.venv}
case $venv in
    /*) ;;
    *) venv=$PWD/$venv ;;
esac
cd -- "$root"

fail() {
    echo "error: $1" >&2
    exit 1
}

# False also for the shims of version managers, which exist but may start no Python.
usable() {
    "$1" -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

make_venv() {
    if [ -d "$venv" ] && [ ! -e "$venv/pyvenv.cfg" ] && [ -n "$(ls -A "$venv")" ]; then
        fail "$venv must be a virtual environment or a new folder, and is neither; remove it"
    fi
    for python in python3 python3.13 python3.12 python3.11; do
        if usable "$python"; then
            echo "Making a virtual environment in $venv" >&2
            "$python" -m venv --clear "$venv"
            return
        fi
    done
    fail "splitattn needs Python 3.11 or later with its venv module, found none; install it first"
}

# Exists while pip runs. If pip is killed, packages may look installed but be incomplete.
unfinished=$venv/.splitattn-unfinished
# A line for each extra: a checksum of what it was installed from, and its name.
installed=$venv/.splitattn-installed
state=$({ pwd && cat pyproject.toml; } | cksum)

if ! usable "$venv/bin/python" || [ -e "$unfinished" ]; then
    make_venv
fi
if ! grep -qsxF "$state $extra" "$installed"; then
    echo "Installing splitattn${extra:+[$extra]}" >&2
    touch "$unfinished"
    "$venv/bin/python" -m ensurepip >/dev/null
    status=0
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile \
        --editable "$package" >&2 || status=$?
    # Compile on all cores, which is faster than pip. Without it, every start would compile again if
    # PYTHONDONTWRITEBYTECODE is set. Packages that no command imports are left out.
    [ "$status" -ne 0 ] || "$venv/bin/python" -m compileall -q -j 0 \
        -x '/(pip|setuptools|tests?)/' "$venv/lib" src >/dev/null || :
    [ "$status" -gt 128 ] || rm "$unfinished"
    [ "$status" -eq 0 ] || fail "pip could not install splitattn${extra:+[$extra]}; see above"
    # Extras of another state are dropped, since this installation replaces them.
    { grep -sF "$state " "$installed" || :; echo "$state $extra"; } >"$installed.new"
    mv "$installed.new" "$installed"
fi
echo "$venv/bin/python"
