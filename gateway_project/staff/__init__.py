"""What only staff see: the admin's own pages, and the same numbers as JSON.

In the outer ring, because it looks at all apps at once.
"""
