"""Sweeps: many trials of one experiment, their directories, and their results compared."""
