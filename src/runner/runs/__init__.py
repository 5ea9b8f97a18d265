"""Everything a run leaves on disk or screen, and how it is read back."""
