"""PostgreSQL, as Django has it, and counted."""
