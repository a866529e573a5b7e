"""Redis, the database and caches, as the data plane uses them."""
