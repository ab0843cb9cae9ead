#!/bin/sh
# Run everything that needs a CUDA GPU: its tests, and its rows of the benchmarks.
#
# usage: benchmarks/on_gpu.sh [FOLDER]
#
# Rows are added to the JSON files beside this script. They are copied to FOLDER too, for machines
# whose disk is lost after the run. Needs the extra [dev]. BATCH, SIZE, ROUNDS and DEVICE are for
# small trial runs.
set -eu

cd -- "$(dirname -- "$0")/.."
folder=${1:-}
device=${DEVICE:-cuda}
batch=${BATCH:-256}
size=${SIZE:-224}
rounds=${ROUNDS:-20}
python=${PYTHON:-python3}
export PYTHONPATH="src${PYTHONPATH:+:$PYTHONPATH}"

keep() {
    if [ -n "$folder" ]; then
        mkdir -p "$folder"
        cp "$@" "$folder" || failed=1
    fi
}

step() {
    echo "== $*"
    # A failure must not prevent the steps after it.
    "$@" || { echo "== failed: $*"; failed=1; }
}

failed=0
tests=benchmarks/gpu_tests.txt
step "$python" -m pytest -q -m gpu tests/nn tests/training >"$tests" 2>&1
cat "$tests"
keep "$tests"
rm -f "$tests"

for model_batch in "$batch" 1; do
    name=benchmarks/inference_$device.batch$model_batch.json
    echo "== bench, batch $model_batch"
    "$python" -m splitattn bench --device "$device" --batch-size "$model_batch" --size "$size" \
        --rounds "$rounds" --json >"$name.new" || { rm -f "$name.new"; failed=1; continue; }
    mv "$name.new" "$name"
    keep "$name"
done

for entrants in eager compiled; do
    step "$python" benchmarks/training_throughput.py --batch "$batch" --size "$size" \
        --precision bfloat16 --device "$device" --rounds "$rounds" --mode "$entrants"
done
keep benchmarks/training_throughput.json

step "$python" benchmarks/convolution_forms.py --batch "$batch" --size "$size" \
    --precision bfloat16 --device "$device" --rounds "$rounds"
keep benchmarks/convolution_forms.json

exit "$failed"
