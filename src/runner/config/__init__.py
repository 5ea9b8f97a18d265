"""Configuration: from YAML and the command line to one checked, frozen `Config`. Nothing here imports torch."""
