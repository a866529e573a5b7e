"""What calls cost and did: from the request's row to reports."""
