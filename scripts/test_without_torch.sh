#!/bin/sh
# Run the tests of what needs no PyTorch, in an environment that has none: the demo's own.
set -eu

python=$("$(dirname -- "$0")/environment.sh")
CDPATH='' cd -- "$(dirname -- "$0")/.."
"$python" -m pip install --quiet --disable-pip-version-check pytest pytest-timeout >&2
exec "$python" -m pytest tests/without_torch "$@"
