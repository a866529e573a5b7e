"""The frozen reference; run by benchmarks.run inside its own environment."""
