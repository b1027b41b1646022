"""Numba kernels: the arithmetic of moemesh. Knows arrays only; imports numpy and numba, nothing else."""

__version__ = "0.1.0"
