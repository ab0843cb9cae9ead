#!/bin/sh
# Run the tests; arguments go to pytest.
set -eu

python=$("$(dirname -- "$0")/environment.sh" dev)
CDPATH='' cd -- "$(dirname -- "$0")/.."
exec "$python" -m pytest "$@"
