"""The verbs: each module or folder has USAGE and command()."""
