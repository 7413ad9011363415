"""Triton kernels, one template a file, each with its twin in plain PyTorch."""
