"""Verbs of the command line: each module or folder has USAGE and command()."""
