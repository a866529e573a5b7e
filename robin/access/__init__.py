"""Who may use Robin's API: tokens, sessions, tickets, people."""
