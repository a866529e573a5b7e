"""`python -m benchmarks.robin_token`: an access token of an administrator of Robin.

Run in the environment of the gateway that is to take it.
"""

from __future__ import annotations

import django


def main() -> None:
    django.setup()
    from accounts.models import User
    from accounts.services import Actor
    from robin.access import sessions
    from robin.models import RobinAccess
    from robin.permissions import Role

    email, password = "bench@robin.example", "a password of enough words"
    if not User.objects.filter(email=email).exists():
        user = User.objects.create_user(email, password)
        RobinAccess.objects.create(user=user, role=Role.ADMIN)
    print(sessions.sign_in(email, password, actor=Actor("bench")).access)


if __name__ == "__main__":
    main()
