"""Measurements: every figure the README states is printed by a module of this folder."""
