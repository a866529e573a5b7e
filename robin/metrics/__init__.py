"""Robin's figures, sampled and served as series."""
