"""How fast the stages are, in units of one plain forward: ``python -m benchmarks``."""
