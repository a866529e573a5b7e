"""Staff's view of tenants, keys and usage.

Staff see what their view permissions say; superusers act. Every act goes through
`accounts.services` or `accounts.moderation`, is audited, and counts everywhere within a second.
"""

from accounts.admin import keys, people, usage

__all__ = ["keys", "people", "usage"]
