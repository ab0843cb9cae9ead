#!/bin/sh
# Run the tests, on all cores; arguments go to pytest.
set -eu

python=$("$(dirname -- "$0")/environment.sh" dev)
CDPATH='' cd -- "$(dirname -- "$0")/.."
# One thread per process, since more would wait for one another. A process that is done takes over
# tests of the others.
export OMP_NUM_THREADS=1
exec "$python" -m pytest --numprocesses auto --dist worksteal "$@"
