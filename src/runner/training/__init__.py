"""One run: build it, step it, record it, report how it ended."""
