"""Members of Acme at Django's test client; what they see is in `response.context`."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from allauth.account.internal.flows.login import record_authentication
from django.test import Client

from accounts.models import Membership


@pytest.fixture
def enter() -> Any:
    """`enter(alice)`: a client that is signed in."""

    def sign_in(user: Any) -> Client:
        client = Client()
        client.force_login(user, backend="django.contrib.auth.backends.ModelBackend")
        # As a password does: without it, what shows a secret would ask for one.
        session = client.session
        request = SimpleNamespace(session=session)
        record_authentication(request, user, method="password")
        session.save()
        return client

    return sign_in


@pytest.fixture
def owner(enter: Any, alice: Any, acme: Any) -> Client:
    client: Client = enter(alice)
    return client


@pytest.fixture
def viewer(enter: Any, bob: Any, acme: Any) -> Client:
    Membership.objects.filter(user=bob, workspace=acme).update(role="viewer")
    client: Client = enter(bob)
    return client


@pytest.fixture
def stranger(enter: Any, charlie: Any, globex: Any) -> Client:
    client: Client = enter(charlie)
    return client
