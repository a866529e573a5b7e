"""How Robin and its two servers stand."""
