#!/bin/sh
# Label scikit-image's four photographs with the model that ships inside the package.
set -eu

python=$("$(dirname -- "$0")/environment.sh" demo)
photos=$("$python" -c 'import skimage.data; print(*skimage.data.__path__)')
cd -- "$photos"
exec "$python" -m splitattn predict --topk 3 chelsea.png coffee.png astronaut.png rocket.jpg
