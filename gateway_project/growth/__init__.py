"""A database as large as it may become, and what everything costs there."""
