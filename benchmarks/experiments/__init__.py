"""The papers' experiments on real data: ``python -m benchmarks.experiments``."""
