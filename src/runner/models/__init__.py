"""Modules and losses."""
