"""Neurons as scalar functions, recorded once, differentiated, and run by every backend."""
