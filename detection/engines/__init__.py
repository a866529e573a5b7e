"""The engines behind the gateway's registry, and what their answers have in common."""
