#!/bin/sh
# Run the tests that need no PyTorch in the demo's environment, which has none. pyarrow, which
# "bulk" needs for folders, is installed; tests that need it missing hide it.
set -eu

python=$("$(dirname -- "$0")/environment.sh")
CDPATH='' cd -- "$(dirname -- "$0")/.."
"$python" -m pip install --quiet --disable-pip-version-check pyarrow pytest pytest-timeout >&2
exec "$python" -m pytest tests/without_torch "$@"
