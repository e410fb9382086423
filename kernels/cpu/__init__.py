"""The fused loops of the backend `numba`."""
