"""Sinks of a run's rows of metrics: JSON lines, TensorBoard, lines of text."""
