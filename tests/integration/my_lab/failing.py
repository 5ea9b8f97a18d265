"""A module whose import fails."""

raise ValueError("no data of the lab")
