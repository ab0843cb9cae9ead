#!/bin/sh
# Run exported files in the oldest libraries that must read them: ONNX Runtime 1.16, OpenCV 4.8.
set -eu

python=$("$(dirname -- "$0")/environment.sh" dev)
CDPATH='' cd -- "$(dirname -- "$0")/.."
folder=$(mktemp -d)
trap 'rm -rf -- "$folder"' EXIT

# Both were built for NumPy 1 and for Python up to 3.11.
old_environment() {
    "$python" -m venv "$folder/$1" >&2
    "$folder/$1/bin/python" -m pip install --quiet --disable-pip-version-check \
        --only-binary :all: 'numpy<2' "$2" >&2
    echo "$folder/$1/bin/python"
}
SPLITATTN_OLD_ONNXRUNTIME=$(old_environment onnxruntime 'onnxruntime==1.16.*')
SPLITATTN_OLD_OPENCV=$(old_environment opencv 'opencv-python-headless==4.8.*')
export SPLITATTN_OLD_ONNXRUNTIME SPLITATTN_OLD_OPENCV
export OMP_NUM_THREADS=1
"$python" -m pytest tests/graph -m slow -k old_libraries "$@"
