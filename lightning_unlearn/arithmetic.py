"""Version of the arithmetic of training: what decides the bits of a run beside its config and the libraries."""

ARITHMETIC = 2
"""Raised where the same config gives other bits. 1: before 2. 2: gradients written out, and workers that act."""
