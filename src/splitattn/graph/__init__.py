"""The inference network without PyTorch: folded in NumPy, written as ONNX."""
