"""The engines behind the gateway's one door, and what their answers have in common."""
