"""Measurements. Each module is a script that prints tables or figures."""
