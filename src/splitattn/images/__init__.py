"""From bytes, paths, URLs and arrays to the tensor that a network is evaluated on."""
