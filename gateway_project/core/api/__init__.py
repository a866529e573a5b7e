"""What every endpoint stands on, from the socket to the answer."""
