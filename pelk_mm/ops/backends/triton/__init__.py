"""Convolutions on NVIDIA GPUs by triton, which compiles where it runs."""

from .backend import BACKENDS

__all__ = ['BACKENDS']
