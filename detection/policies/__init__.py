"""What a key does with a score."""
