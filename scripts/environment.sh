#!/bin/sh
# usage: scripts/environment.sh EXTRA
#
# Make sure of a virtual environment that has this checkout installed as splitattn[EXTRA], and print
# the path of its Python. It is .venv in the checkout, or where SPLITATTN_VENV says. Nothing is
# installed again until pyproject.toml changes.
set -eu

extra=$1
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

# False too for a command that is there and starts nothing, as version managers leave them.
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

# There while pip works. After a killed pip, packages may look installed that are not whole.
unfinished=$venv/.splitattn-unfinished
# A line for each extra: what it was installed from, and its name.
installed=$venv/.splitattn-installed
state=$({ pwd && cat pyproject.toml; } | cksum)

if ! usable "$venv/bin/python" || [ -e "$unfinished" ]; then
    make_venv
fi
if ! grep -qsxF "$state $extra" "$installed"; then
    echo "Installing splitattn[$extra]; the first time this takes minutes" >&2
    touch "$unfinished"
    "$venv/bin/python" -m ensurepip >/dev/null
    status=0
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
        --editable ".[$extra]" >&2 || status=$?
    [ "$status" -gt 128 ] || rm "$unfinished"
    [ "$status" -eq 0 ] || fail "pip could not install splitattn[$extra]; see above"
    # Extras installed from another state are forgotten: this installation took their place.
    { grep -sF "$state " "$installed" || :; echo "$state $extra"; } >"$installed.new"
    mv "$installed.new" "$installed"
fi
echo "$venv/bin/python"
