"""Bytes, paths, URLs and arrays become the network's input."""
