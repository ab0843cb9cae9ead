#!/bin/sh
# Build the site into site/, whole or not at all. The guide is run on the way; warnings are errors,
# and so is an error in it. Arguments go to Sphinx.
set -eu

python=$("$(dirname -- "$0")/environment.sh" docs)
CDPATH='' cd -- "$(dirname -- "$0")/.."
# Everything that the site shows is here.
export SPLITATTN_OFFLINE=1
# On a busy machine, threads that wait for one another would cost more than they save.
export OMP_NUM_THREADS=1
rm -rf build/site
"$python" -m sphinx --fail-on-warning --keep-going \
    --doctree-dir build/site/doctrees "$@" docs build/site/html
rm -rf site
mv build/site/html site
