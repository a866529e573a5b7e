"""Benchmarks of the gateway against a frozen reference; see README.md."""
