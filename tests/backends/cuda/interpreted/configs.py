"""Configurations of products, one of each family."""

from __future__ import annotations

from torchsmith.backends.cuda.tactics.gemm_configs import GemmConfig

GEMM_CONFIGS = [
    GemmConfig(16, 32, 32, 4, 2),
    GemmConfig(32, 16, 64, 4, 3, ahead=True),
    GemmConfig(16, 32, 32, 4, 2, split_k=3),
    GemmConfig(32, 32, 32, 4, 2, programs=3, group_m=2),
    GemmConfig(64, 64, 32, 1, 2),  # the epilogue in halves
    GemmConfig(16, 16, 32, 1, 2, chains=4),
    GemmConfig(16, 32, 32, 2, 2, split_k=2, chains=2),
]
