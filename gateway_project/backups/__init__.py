"""Backups of the database: made of one snapshot, encrypted as they leave, tried by restoring them.

A backup is two files: `NAME.dump.age`, what pg_dump writes (custom format) encrypted to age
recipients, and `NAME.json`, readable, what must be in it (`manifest.py`). With `age` and
`pg_restore` alone it can be restored without the gateway.
"""

MADE = "backup.made"
NOTED = "backup.noted"
"""Somebody else made one, such as the cloud's snapshots."""
VERIFIED = "backup.verified"
ACTIONS = (MADE, NOTED)


class BackupError(Exception):
    """It did not work; the sentence says what to do."""
