"""What helps those who receive: an inbox, a signature debugger."""
