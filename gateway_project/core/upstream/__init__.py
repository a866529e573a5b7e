"""Calling others: pooled clients, breakers, destinations that are allowed."""
