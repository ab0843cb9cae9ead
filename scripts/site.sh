#!/bin/sh
# Build the site into site/, completely or not at all. This runs the guide. Sphinx's warnings, and
# errors in the guide, end the build. Arguments go to Sphinx.
set -eu

python=$("$(dirname -- "$0")/environment.sh" docs)
CDPATH='' cd -- "$(dirname -- "$0")/.."
# The site needs nothing from the network.
export SPLITATTN_OFFLINE=1
# On a busy machine, threads would wait for one another.
export OMP_NUM_THREADS=1
rm -rf build/site
"$python" -m sphinx --fail-on-warning --keep-going \
    --doctree-dir build/site/doctrees "$@" docs build/site/html
rm -rf site
mv build/site/html site
echo "They are in site now: open site/index.html in a browser."
