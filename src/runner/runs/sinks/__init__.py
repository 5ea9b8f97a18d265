"""Places that rows of metrics are written to: files, TensorBoard, the console."""
