"""The version of this library; `pyproject.toml` says the same."""

VERSION = "0.1.0"
