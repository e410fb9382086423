"""What runs the time loop, and where: the table, the oracle, and what kernels on a CPU share."""
