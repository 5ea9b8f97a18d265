"""One run: build it, step it, record it, say how it ended."""
