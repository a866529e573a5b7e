"""Batches and asynchronous detection."""
