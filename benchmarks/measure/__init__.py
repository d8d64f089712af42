"""What the benchmarks share: timing, the machine, and result files."""
