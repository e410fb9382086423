"""Backends of the time loop: the table of them, the oracle, and what kernels on a CPU share."""
