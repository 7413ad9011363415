"""One file an op, or a family of ops: how TensorRT computes it."""
