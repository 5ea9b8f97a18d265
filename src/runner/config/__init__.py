"""From YAML and the command line to one checked, frozen configuration. Nothing here imports torch."""
