"""The block and the network: tensors in, tensors out."""
