"""SQLite, as Django has it, and counted."""
