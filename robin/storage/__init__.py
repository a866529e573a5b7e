"""Robin's mail store."""
