"""Where and how numbers are computed: devices, precision, random streams, processes, strategies."""
