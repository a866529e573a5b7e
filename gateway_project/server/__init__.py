"""What `serve` starts: the web processes and who watches them."""
