"""Sweeps: many trials of one experiment, their directories, and what they come to together."""
