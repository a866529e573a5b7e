"""What customers say of verdicts."""
