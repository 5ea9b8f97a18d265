"""Everything that a run leaves on the disk or the screen, and how it is read."""
