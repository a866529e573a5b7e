"""Robin's log."""
