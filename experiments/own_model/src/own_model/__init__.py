"""A model of one's own for runner."""
