"""`python -m deploy.robin_real.people PASSWORD`: makes those who sign in to Robin UI.

Run in the environment of the gateway whose database they shall be in.
"""

from __future__ import annotations

import sys

import django

ADMIN, OPERATOR, READER = "admin@robin.local", "operator@robin.local", "reader@robin.local"


def main(password: str) -> None:
    django.setup()
    from accounts.models import User
    from robin.models import RobinAccess
    from robin.permissions import Role

    for email, role in (
        (ADMIN, Role.ADMIN),
        (OPERATOR, Role.OPERATOR),
        (READER, Role.READONLY),
    ):
        user = User.objects.create_user(email, password)
        RobinAccess.objects.create(user=user, role=role)


if __name__ == "__main__":
    main(sys.argv[1])
