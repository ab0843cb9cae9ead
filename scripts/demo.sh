#!/bin/sh
# Label four photographs with the model that ships inside the package.
set -eu

cd -- "$(dirname -- "$0")/.."
python=$(scripts/environment.sh)
cd src/splitattn/images/samples
exec "$python" -m splitattn predict --topk 3 chelsea.jpg coffee.jpg astronaut.jpg rocket.jpg
