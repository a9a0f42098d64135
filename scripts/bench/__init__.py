"""Benchmarks of Shoal beside its peers. Run them by ``python -m scripts.bench``."""
