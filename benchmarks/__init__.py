"""Benchmarks: how fast Strongroom is, beside other tools, and how its cost grows. See docs/how-to/benchmarks.md."""
