"""The fused loops of the backend `triton`."""
