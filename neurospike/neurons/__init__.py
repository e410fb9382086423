"""A neuron is one scalar function: recorded once, its gradient derived, run by every backend."""
