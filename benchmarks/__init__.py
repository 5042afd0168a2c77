"""Commands behind every table; the newer ones run as modules, ``python -m benchmarks.NAME``."""
