"""Addresses that Robin's operators keep out."""
