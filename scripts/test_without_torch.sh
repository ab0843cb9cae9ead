#!/bin/sh
# Run the tests of what needs no PyTorch, in an environment that has none: the demo's own. Of the
# extra "bulk" it gets what a folder needs; tests hide that where it should be missing.
set -eu

python=$("$(dirname -- "$0")/environment.sh")
CDPATH='' cd -- "$(dirname -- "$0")/.."
"$python" -m pip install --quiet --disable-pip-version-check pyarrow pytest pytest-timeout >&2
exec "$python" -m pytest tests/without_torch "$@"
